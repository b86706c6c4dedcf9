"""Real processes for the end-to-end tests: started on free ports, always ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx
import openai

from tests.cli.ports import free_port

ROOT = Path(__file__).parents[2]
READY_S = 400
HTTP = httpx.Client(verify=False, trust_env=False, timeout=120)
"""For plain addresses: a client that could do TLS reads all certificates first, 25 ms of a core each."""


def environment(data_dir: Path, port: int, **settings: object) -> dict[str, str]:
    """Return an environment in which only these settings are set.

    There is nothing on its PATH: the product needs no other program, least of all a compiler. Threads are
    not bound to cores, which several engines of the tests share.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith("LATENTEVOLVE_")}
    env |= {
        "LATENTEVOLVE_DATA_DIR": str(data_dir),
        "LATENTEVOLVE_CACHE_DIR": str(ROOT / ".cache"),
        "LATENTEVOLVE_PORT": str(port),
        "LATENTEVOLVE_RECALL_TIMEOUT_S": "30",  # machines that run tests are busy
        "LATENTEVOLVE_LOW_RECALLS": "true",
        "LATENTEVOLVE_EXPLORE_SHARE": "0",
        "PATH": str(data_dir / "no-programs"),
        "PYTHONUNBUFFERED": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    return env | {f"LATENTEVOLVE_{key.upper()}": str(value) for key, value in settings.items()}


@dataclass
class Process:
    """A child in its own process group, and the file its output goes to."""

    popen: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """SIGKILL the first process of the group, and wait until it is gone."""
        self.popen.kill()
        self.popen.wait(30)

    def end(self, patience_s: float = 60) -> int:
        """SIGINT, as Ctrl-C would, then SIGKILL to the group when that does not end it."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGINT)
            try:
                self.popen.wait(patience_s)
            except subprocess.TimeoutExpired:
                os.killpg(self.popen.pid, signal.SIGKILL)
        return self.popen.wait(30)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def start(command: list[str], env: dict[str, str], log: Path) -> Process:
    with log.open("ab") as out:
        popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return Process(popen, log)


def wait_for(url: str, process: Process, seconds: float = READY_S) -> httpx.Response:
    """Wait until `url` answers 200, while the process lives."""
    deadline = time.monotonic() + seconds
    last = "no answer"
    while time.monotonic() < deadline:
        if process.popen.poll() is not None:
            raise RuntimeError(f"ended with {process.popen.returncode}:\n{process.tail()}")
        try:
            answer = HTTP.get(url, timeout=5)
            if answer.status_code == 200:
                return answer
            last = answer.text
        except httpx.HTTPError as error:
            last = repr(error)
        time.sleep(0.3)
    raise TimeoutError(f"{url}: {last}\n{process.tail()}")


@dataclass
class Gateway:
    """A running gateway, or a whole tree, and clients for it."""

    url: str
    process: Process
    data_dir: Path
    env: dict[str, str]

    @cached_property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    @cached_property
    def model(self) -> str:
        return str(self.openai.models.list().data[0].id)

    def get(self, path: str, status: int = 200) -> dict:
        answer = HTTP.get(self.url + path)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, body: object = None, status: int = 200) -> dict:
        answer = HTTP.post(self.url + path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def ask(
        self, question: str, *, max_tokens: int = 16, choices: list[str] | None = None, **latent: object
    ) -> tuple[str, httpx.Headers]:
        """Return (text, headers) of one greedy chat completion with these latent options."""
        extra: dict[str, object] = {"latent": latent} if latent else {}
        if choices is not None:
            extra["structured_outputs"] = {"choice": choices}
        raw = self.openai.chat.completions.with_raw_response.create(
            model=self.model,
            messages=[{"role": "user", "content": question}],
            max_tokens=max_tokens,
            temperature=0,
            extra_body=extra,
        )
        return raw.parse().choices[0].message.content, raw.headers

    def trace(self, headers: httpx.Headers) -> dict:
        return self.get(f"/v1/latent/traces/{headers['x-latent-trace']}")

    def settled_trace(self, headers: httpx.Headers, seconds: float = 60) -> dict:
        """Return the trace once its episode is stored, or it is known that none will be."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            trace = self.trace(headers)
            if trace["remembered"] != "pending":
                return trace
            time.sleep(0.05)
        raise TimeoutError(f"still pending: {trace}")

    def night(self, seconds: float = 600) -> dict:
        """Run a night and return its record once it has ended."""
        return self.ended(self.post("/v1/consolidations", {"trigger": "api"}, status=202)["id"], seconds)

    def ended(self, night_id: str, seconds: float = 600) -> dict:
        """Return a night's record once it has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            record = self.get(f"/v1/consolidations/{night_id}")
            if record["state"] not in {"queued", "running"}:
                return record
            time.sleep(0.5)
        raise TimeoutError(f"{record}\n{self.process.tail()}")


@contextmanager
def running(command: list[str], data_dir: Path, **settings: object) -> Iterator[Gateway]:
    """Run a gateway (or the whole tree) until the block ends."""
    data_dir.mkdir(parents=True, exist_ok=True)
    port = free_port()
    env = environment(data_dir, port, **settings)
    process = start(command, env, data_dir / "test.log")
    try:
        gateway = Gateway(f"http://127.0.0.1:{port}", process, data_dir, env)
        wait_for(f"{gateway.url}/readyz", process)
        yield gateway
        gateway.openai.close()
    finally:
        process.end()


GATEWAY = [sys.executable, "-m", "server"]
TREE = [sys.executable, "-m", "cli.main", "serve"]
