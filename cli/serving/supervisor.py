"""Starts children, watches them, ends them.

Owns the life of the tree: the order of starting, restarts with backoff, when to give up, one stop for
all, and the guard that ends everything when this process is killed. Knows nothing of what the children
do: readiness comes from a probe that is given, output goes to a board that is given.
"""

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType

from cli.serving.board import Board
from cli.serving.child import Child, ChildSpec, Ended, LineWritten
from cli.serving.lifeline import lifeline

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOG_BYTES = 20 * 2**20


class _LogFile(RotatingFileHandler):
    """One that a full disk does not make complain for each line: the board shows them all the same."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Leave the line out."""


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a child that ended is started again."""

    first_s: float = 1.0
    most_s: float = 60.0
    healthy_s: float = 60.0
    """A child that was ready for so long starts again from `first_s`."""


@dataclass(frozen=True)
class StopAsked:
    """A signal asks the tree to end."""


@dataclass
class Life:
    """What is known of one child across its restarts."""

    spec: ChildSpec
    child: Child | None = None
    started_at: float = 0.0
    ready_at: float | None = None
    """When the running child was first seen to be ready."""
    served_s: float = 0.0
    """How long it was ready, over all restarts."""
    deaths: list[float] = field(default_factory=list)
    """What `served_s` was at each of its ends."""
    wait_s: float = 0.0
    """Last wait before a restart."""
    start_at: float | None = None
    """When it is to be started again."""

    def end(self) -> float:
        """Note that the child has ended; return how long it was ready."""
        served_s = 0.0 if self.ready_at is None else time.monotonic() - self.ready_at
        self.child, self.ready_at = None, None
        self.served_s += served_s
        self.deaths.append(self.served_s)
        return served_s

    def died_too_often(self) -> bool:
        """Return whether the latest deaths have used up what its limit allows."""
        limit = self.spec.limit
        if limit is None or len(self.deaths) < limit.deaths:
            return False
        return self.served_s - self.deaths[-limit.deaths] < limit.within_s


STOP_S = 60.0
"""How long children may take to end; the gateway alone may need 50 s."""


@dataclass
class Supervisor:
    """One tree of children. `run` blocks until all of it has ended."""

    specs: Sequence[ChildSpec]
    board: Board
    logs: Path
    """Folder of one rotated log file per child."""
    env: Mapping[str, str]
    """Environment of the children."""
    hold_fds: Sequence[int] = ()
    """Descriptors that stay open until nothing is left, such as the lock of the data directory."""
    stop_s: float = STOP_S
    """How long children may take to end before they are killed."""
    backoff: Backoff = field(default_factory=Backoff)
    on_line: Callable[[str, str], None] = lambda _name, _text: None
    """Called with a child's name and a line of its output."""
    is_ready: Callable[[str], bool] = lambda _name: True
    """Whether the running child of this name does its work; asked a few times per second until it does."""
    on_restart: Callable[[str], None] = lambda _name: None
    """Called with the name of a child that has ended and will be started again."""
    on_passed: Callable[[str], None] = lambda _name: None
    """Called with the name of a child that had to pass and did."""
    on_tick: Callable[[], None] = lambda: None
    """Called a few times per second until the tree is asked to end."""

    def __post_init__(self) -> None:
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()  # its put may run in a signal handler
        self._lives = {spec.name: Life(spec) for spec in self.specs}
        self._files: dict[str, _LogFile] = {}
        self._stop_at: float | None = None
        self._code = 0

    def run(self) -> int:
        """Start everything, stay until it has ended, return the exit code."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with lifeline(self.stop_s, self.hold_fds) as self._guard_fd, self._signals():
            try:
                self._start_next()
                while self._stop_at is None or any(life.child for life in self._lives.values()):
                    self._handle(self._next_event())
                    self._keep_time()
            finally:
                for life in self._lives.values():  # only when something above has failed
                    if life.child:
                        life.child.kill()
                        life.child.reap()
                for file in self._files.values():
                    with suppress(OSError):  # a full disk
                        file.close()
        return self._code

    def _next_event(self) -> object | None:
        with suppress(queue.Empty):
            return self._events.get(timeout=0.1)
        return None

    def _handle(self, event: object | None) -> None:
        match event:
            case LineWritten(child, text):
                self._write(child.name, text)
            case Ended(child):
                self._ended(self._lives[child.name], child)
            case StopAsked():
                if self._stop_at is None:
                    self.board.say("stopping; once more to force it")
                    self._stop(0)
                else:
                    self.board.say("forced")
                    self._kill()

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._stop_at is not None:
            if now > self._stop_at:
                names = [life.spec.name for life in self._lives.values() if life.child]
                if names:
                    self.board.say(f"{', '.join(names)} did not end within {self.stop_s:g} s: killed")
                self._kill()
                self._stop_at = float("inf")
            return
        self.on_tick()
        for life in self._lives.values():
            if life.start_at is not None and now >= life.start_at:
                self._start(life)
            elif life.child and life.ready_at is None and self.is_ready(life.spec.name):
                life.ready_at = now

    def _start_next(self) -> None:
        """Start the first child that must pass and has not; when all have, start the others."""
        for life in self._lives.values():
            if life.spec.passing and not life.started_at:
                self._start(life)
                return
        for life in self._lives.values():
            if not life.spec.passing:
                self._start(life)

    def _start(self, life: Life) -> None:
        life.start_at = None
        life.started_at = time.monotonic()
        life.child = Child(life.spec, self._events, self._guard_fd, self.env)
        self._write_log(life.spec.name, f"--- started, process {life.child.pid}")
        self.board.event("started", name=life.spec.name, pid=life.child.pid)

    def _ended(self, life: Life, child: Child) -> None:
        if self._stop_at is None:
            self._sweep(child)
        code = child.reap()
        for _ in range(self._events.qsize()):  # show its last words before what comes of its end
            waiting = self._events.get()
            if isinstance(waiting, LineWritten):
                self._write(waiting.child.name, waiting.text)
            else:
                self._events.put(waiting)
        served_s = life.end()
        with suppress(OSError):
            os.write(self._guard_fd, b"-%d\n" % child.pid)
        self._write_log(child.name, f"--- ended, {describe(code)}")
        self.board.event("ended", name=child.name, pid=child.pid, code=code)
        if self._stop_at is not None:
            return
        if life.spec.passing and code == 0:
            self.on_passed(child.name)
            self._start_next()
        elif not life.spec.restart or (life.spec.limit and not life.served_s):
            self._fail(child, code)
        elif life.died_too_often():
            self._fail(child, code)
            self._advise(life)
        else:
            self._restart_later(life, code, served_s)

    def _sweep(self, child: Child) -> None:
        """Tell what the first process left behind; reap() kills it."""
        left = child.left_behind()
        if left:
            self.board.say(f"{child.name} left {left} process(es) behind: killed")

    def _restart_later(self, life: Life, code: int, served_s: float) -> None:
        if served_s >= self.backoff.healthy_s or not life.wait_s:
            life.wait_s = self.backoff.first_s
        else:
            life.wait_s = min(life.wait_s * 2, self.backoff.most_s)
        life.start_at = time.monotonic() + life.wait_s
        self.board.say(
            f"{life.spec.name} ended ({describe(code)}); starting it again in {life.wait_s:g} s",
            "bold yellow",
        )
        self.board.event("restart", name=life.spec.name, code=code, wait_s=life.wait_s)
        self.on_restart(life.spec.name)

    def _fail(self, child: Child, code: int) -> None:
        self.board.say(f"{child.name} ended ({describe(code)}); its last lines:", "bold red")
        for text in list(child.last_lines)[-20:]:
            self.board.say(f"  {text}")
        self.board.say(f"all of it: {self.logs / child.name}.log")
        self._stop(code if code >= 0 else 128 - code)

    def _advise(self, life: Life) -> None:
        limit = life.spec.limit
        assert limit is not None
        self.board.say(
            f"{life.spec.name} died {limit.deaths} times in {limit.within_s / 60:g} minutes of service: "
            f"not started again. {limit.advice}",
            "bold red",
        )

    def _stop(self, code: int) -> None:
        self.board.close()
        self._code = code
        self._stop_at = time.monotonic() + self.stop_s
        for life in self._lives.values():
            life.start_at = None
            if life.child:
                life.child.terminate()

    def _kill(self) -> None:
        for life in self._lives.values():
            if life.child:
                life.child.kill()

    def _write(self, name: str, text: str) -> None:
        self._write_log(name, text)
        self.board.log(name, text)
        self.on_line(name, text)

    def _write_log(self, name: str, text: str) -> None:
        if name not in self._files:
            self._files[name] = _LogFile(
                self.logs / f"{name}.log", maxBytes=LOG_BYTES, backupCount=2, encoding="utf-8"
            )
        self._files[name].emit(logging.LogRecord(name, logging.INFO, "", 0, text, None, None))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(_number: int, _frame: FrameType | None) -> None:
            self._events.put(StopAsked())

        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a supervisor runs in the main thread: only it receives signals")
        # What is ignored stays so: nohup asks for that, and whoever starts a job in the background.
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, ask) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def describe(code: int) -> str:
    """Return an exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
