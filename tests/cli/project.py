"""A folder whose `server` and `worker` packages stand in for the real ones, which need a model."""

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.cli.ports import free_port
from tests.cli.serving.conftest import alive

ROOT = Path(__file__).parents[2]

GATEWAY = """
import os, sys
import uvicorn
from fastapi import FastAPI
app = FastAPI()
print("weights are loading", flush=True)
if os.environ.get("FAIL"):
    sys.exit(4)
OK = not os.environ.get("BAD_CHECK")
CHECKS = [{"name": "mixed-prompt", "ok": OK, "value": 0.2, "detail": "cosine 0.2"}]
@app.get("/readyz")
def readyz():
    return {"ready": True, "engine": True, "memory": True, "checks": CHECKS, "steering": OK}
@app.get("/env")
def env():
    return dict(os.environ)
uvicorn.run(app, port=int(os.environ["LATENTEVOLVE_PORT"]), log_level="warning")
"""
WORKER = """
import os, time
from celery import Celery
if os.environ.get("FAIL"):
    time.sleep(3)  # still on its way when the gateway has given up
app = Celery("fake", broker="memory://")
app.conf.worker_pool = "solo"  # the end of a pool of processes takes Celery five seconds
app.conf.broker_connection_retry_on_startup = True
"""


@dataclass
class Project:
    """The folder, what was started in it, and what still runs."""

    folder: Path
    port: int
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def env(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(ROOT),
            "LATENTEVOLVE_DATA_DIR": str(self.data),
            "LATENTEVOLVE_MODEL": str(self.folder / "model"),
        }

    @property
    def arguments(self) -> list[str]:
        return ["serve", "--port", str(self.port), "--stop-timeout", "10"]

    def sessions(self) -> dict[str, int]:
        """Return the last process of each child that was started, from the logs."""
        found = {}
        for log in (self.data / "logs").glob("*.log"):
            started = [line for line in log.read_text().splitlines() if line.startswith("--- started")]
            found[log.stem] = int(started[-1].rsplit(" ", 1)[-1])
        return found

    def left(self) -> list[str]:
        """Return the children that still run."""
        return [name for name, session in self.sessions().items() if alive(session)]

    def clear(self) -> None:
        """End everything that a failed test has left."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        if (self.data / "logs").exists():
            for name in self.left():
                os.kill(self.sessions()[name], signal.SIGKILL)


def make_project(folder: Path) -> Project:
    """Write the packages and a model folder, and return all of it."""
    for name, file, code in (("server", "__main__.py", GATEWAY), ("worker", "app.py", WORKER)):
        package = folder / name
        package.mkdir()
        (package / "__init__.py").touch()
        (package / file).write_text(code)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return Project(folder, free_port())
