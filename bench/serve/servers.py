"""The two servers, started and ended.

Owns bare vLLM's process, and which processes belong to which server. Ours is started by
`cli/demonstration/tree.py`, as `latentevolve serve` starts it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.processes import children, family
from bench.serve.bare import VLLM
from cli.demonstration.tree import own_tree
from cli.failure import CommandError
from cli.options import environment
from cli.screen import Screen
from cli.serving import leash
from cli.serving.claim import free_port
from cli.serving.guard import members, send, sweep
from cli.serving.lifeline import lifeline
from cli.serving.preload import preload

STOP_S = 30.0
START_S = 900.0


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    url: str
    pid: int
    """First process of it."""
    ready_s: float
    """From its start until it answered."""


@contextmanager
def steered_server(screen: Screen, data_dir: Path, overrides: Mapping[str, Any]) -> Iterator[Server]:
    """Run `latentevolve serve` on `data_dir`.

    Raises:
        CommandError: it ended before it was ready.
    """
    before = set(children())
    begun = time.monotonic()
    # What costs most at `low` is measured: requests that recall.
    with own_tree(screen, data_dir, **{"low_recalls": True, **overrides}) as url:
        ready_s = time.monotonic() - begun
        # The guard is a child of ours too; serve is the one with children of its own.
        new = [pid for pid in children() if pid not in before]
        pid = max(new, key=lambda child: len(family(child)))
        yield Server(url, pid, ready_s)


@contextmanager
def bare_server(screen: Screen, folder: Path, overrides: Mapping[str, Any]) -> Iterator[Server]:
    """Run bare vLLM with the engine options and environment of ours; its log goes to `folder`.

    Raises:
        CommandError: it ended before it was ready.
    """
    port = free_port()
    variables = {**environment({**overrides, "port": port}), **preload({}), "PYTHONUNBUFFERED": "1"}
    # `env` adds to what this process inherits, as serve does for its children.
    command = ["env", *(f"{name}={value}" for name, value in variables.items())]
    command += [sys.executable, "-m", "bench.serve.bare"]
    log = folder / "bare.log"
    with lifeline(STOP_S) as guard_fd, log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", leash.__file__, str(guard_fd), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            pass_fds=(guard_fd,),
        )
        try:
            url = f"http://127.0.0.1:{port}"
            with screen.busy("waiting for bare vLLM"):
                begun = _wait(f"{url}/health", process, log)
            yield Server(url, process.pid, time.monotonic() - begun)
        finally:
            _end(process)
            os.write(guard_fd, b"-%d\n" % process.pid)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the whole session, then reap: until then its number stays taken."""
    send([process.pid], 15)
    deadline = time.monotonic() + STOP_S
    while set(members({process.pid})) and time.monotonic() < deadline:
        time.sleep(0.05)
    sweep({process.pid}, 0.0)
    process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> float:
    """Wait until the server answers and return when vLLM began: what finds out its options is not vLLM."""
    began: float | None = None
    deadline = time.monotonic() + START_S
    with httpx.Client(timeout=5.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            # No poll(): a reaped process would free its number for a stranger.
            if process.pid not in members({process.pid}):
                tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
                raise CommandError("bare vLLM ended before it was ready:\n" + "\n".join(tail))
            if began is None and VLLM.encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                began = time.monotonic()
            try:
                if began is not None and client.get(url).status_code == httpx.codes.OK:
                    return began
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
    raise CommandError(f"bare vLLM was not ready within {START_S:g} s")
