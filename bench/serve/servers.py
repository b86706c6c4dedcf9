"""The two servers, started and ended.

Owns bare vLLM's process. Ours is started by `cli/demonstration/tree.py`, as `latentevolve serve` starts it.
"""

import os
import queue
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.serve.bare import VLLM
from cli.demonstration.tree import own_tree
from cli.failure import CommandError
from cli.options import environment
from cli.screen import Screen
from cli.serving.child import Child, ChildSpec
from cli.serving.claim import free_port
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
    begun = time.monotonic()
    # What costs most at `low` is measured: requests that recall.
    with own_tree(screen, data_dir, **{"low_recalls": True, **overrides}) as (url, pid):
        yield Server(url, pid, time.monotonic() - begun)


@contextmanager
def bare_server(screen: Screen, overrides: Mapping[str, Any]) -> Iterator[Server]:
    """Run bare vLLM with the engine options and environment of ours.

    Raises:
        CommandError: it ended before it was ready.
    """
    port = free_port()
    variables = {**environment({**overrides, "port": port}), **preload({}), "PYTHONUNBUFFERED": "1"}
    spec = ChildSpec("bare vLLM", (sys.executable, "-m", "bench.serve.bare"), variables)
    url = f"http://127.0.0.1:{port}"
    with lifeline(STOP_S) as guard_fd:
        child = Child(spec, queue.SimpleQueue(), guard_fd, os.environ)
        try:
            with screen.busy("waiting for bare vLLM"):
                begun = _wait(f"{url}/health", child)
            yield Server(url, child.pid, time.monotonic() - begun)
        finally:
            child.end(STOP_S)
            os.write(guard_fd, b"-%d\n" % child.pid)


def _wait(url: str, child: Child) -> float:
    """Wait until the server answers and return when vLLM began: what finds out its options is not vLLM."""
    began: float | None = None
    deadline = time.monotonic() + START_S
    with httpx.Client(timeout=5.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            if not child.alive:
                said = "\n".join([*child.last_lines][-20:])
                raise CommandError(f"bare vLLM ended before it was ready:\n{said}")
            if began is None and VLLM.encode() in Path(f"/proc/{child.pid}/cmdline").read_bytes():
                began = time.monotonic()
            try:
                if began is not None and client.get(url).status_code == httpx.codes.OK:
                    return began
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
    raise CommandError(f"bare vLLM was not ready within {START_S:g} s")
