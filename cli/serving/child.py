"""One supervised process.

Owns starting a command in a session of its own, the way of its output, and its end with
everything it has started. Knows nothing of why it is started or what its output means.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cli.serving.guard import members, send

LINE_LIMIT = 64 * 1024
"""Longest line in bytes; what is longer is cut into several."""


@dataclass(frozen=True)
class Limit:
    """When a child that is started again has died too often, and what is said then."""

    deaths: int
    within_s: float
    """Time over which deaths are counted; only time in which the child was ready counts."""
    advice: str
    """What the operator can do."""


@dataclass(frozen=True)
class ChildSpec:
    """What is started, and what its end means."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables over those of this process."""
    restart: bool = False
    """Start it again when it ends; otherwise its end is the end of the tree."""
    limit: Limit | None = None
    """Deaths that end the tree all the same, as does one before it was ever ready; None: there are none."""
    passing: bool = False
    """It is to end with code 0 before the others start."""


@dataclass(frozen=True)
class LineWritten:
    """A child has written a line."""

    child: "Child"
    text: str


@dataclass(frozen=True)
class Ended:
    """A child's first process has ended; it is still a zombie, so that its number stays taken."""

    child: "Child"


class Child:
    """A running process. Its events arrive in `events`."""

    def __init__(
        self,
        spec: ChildSpec,
        events: "queue.SimpleQueue[object]",
        guard_fd: int,
        parent_env: Mapping[str, str],
    ) -> None:
        self.spec = spec
        self.last_lines: deque[str] = deque(maxlen=100)
        leash = Path(__file__).with_name("leash.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(leash), str(guard_fd), *spec.command],
            env={**parent_env, **spec.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C reaches the supervisor alone
            pass_fds=(guard_fd,),
        )
        self._events = events
        self._reader = threading.Thread(target=self._read, name=f"{spec.name}-output", daemon=True)
        self._reader.start()
        self._waiter = threading.Thread(target=self._wait, name=f"{spec.name}-end", daemon=True)
        self._waiter.start()

    @property
    def name(self) -> str:
        """Name of the child."""
        return self.spec.name

    @property
    def pid(self) -> int:
        """Process id, also the id of its session."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the first process still runs."""
        return self.pid in members({self.pid})

    def terminate(self) -> None:
        """Ask the first process to end; it tells its own workers."""
        send([self.pid], signal.SIGTERM)

    def kill(self) -> None:
        """End the whole session now."""
        send(members({self.pid}), signal.SIGKILL)

    def end(self, within_s: float) -> int:
        """Ask the first process to end, kill what is left after `within_s`, and return the exit code."""
        self.terminate()
        deadline = time.monotonic() + within_s
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.reap()

    def left_behind(self) -> int:
        """Return how many processes of the session still run, the first one apart."""
        return len(set(members({self.pid})) - {self.pid})

    def reap(self) -> int:
        """Kill what is left of the session and return the exit code, negative for a signal."""
        while left := members({self.pid}):  # a process may fork between the listing and the signal
            send(left, signal.SIGKILL)
        self._waiter.join()  # it waits for the same end, of which nothing is left once it is reaped
        code = self._process.wait()
        self._reader.join(timeout=1.0)  # all writers are dead: the pipe ends at once
        return code

    def _wait(self) -> None:
        # WNOWAIT leaves a zombie, so that the session's number cannot be given to a stranger
        # before the rest of the session has been killed.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self._events.put(Ended(self))

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            while raw := stream.readline(LINE_LIMIT):
                text = raw.decode("utf-8", "replace").rstrip("\r\n")
                self.last_lines.append(text)
                self._events.put(LineWritten(self, text))
