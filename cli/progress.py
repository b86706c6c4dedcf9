"""How long something takes, shown while it does.

Owns one bar per phase on a terminal, with the time that has passed and the time that is left, and a line per
phase and quarter in a pipe. Knows nothing of what is done.
"""

import time
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cli.screen import Screen, printable


class PhaseProgress:
    """Bars for the phases of one job, in the order in which they are first named."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._started = time.monotonic()
        self._phase = ""
        self._quarter = -1
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        if screen.live:
            self._bars = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[message]}", style="dim", markup=False),
                console=screen.console,
            )

    def __enter__(self) -> "PhaseProgress":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def update(self, phase: str, done: int, total: int, message: str = "") -> None:
        """Show that `done` of `total` steps of `phase` are done; `total` 0: not known."""
        if self._bars:
            self._draw(self._bars, phase, done, total, message)
        else:
            self._write(phase, done, total, message)

    def finish(self) -> None:
        """Show the last phase as done."""
        if self._bars:
            for task in self._bars.tasks:
                total = task.total or 1
                self._bars.update(task.id, total=total, completed=total)
                self._bars.stop_task(task.id)

    def _draw(self, bars: Progress, phase: str, done: int, total: int, message: str) -> None:
        if phase not in self._tasks:
            self.finish()
            self._tasks[phase] = bars.add_task(phase, total=None, message="")
        bars.update(
            self._tasks[phase],
            completed=done,
            total=total or None,
            message=printable(message).replace("\n", " "),
        )

    def _write(self, phase: str, done: int, total: int, message: str) -> None:
        quarter = 4 * done // total if total else 0
        if phase == self._phase and quarter <= self._quarter:
            return
        self._phase, self._quarter = phase, quarter
        counted = f" {done}/{total}" if total else ""
        said = f" {message}" if message else ""
        self._screen.line(f"[{time.monotonic() - self._started:6.1f} s] {phase}{counted}{said}")
