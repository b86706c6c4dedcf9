"""What `serve` shows while it starts and runs.

Owns the checklist, the prefixed log lines, the spinner and the box. Knows nothing of processes.
"""

import time
from collections.abc import Sequence

from rich.panel import Panel
from rich.status import Status
from rich.text import Text

from cli.screen import Screen, printable

COLOURS = {"gateway": "cyan", "worker": "green"}


class Board:
    """The screen of one supervised tree. A terminal that has gone is no reason to fail."""

    def __init__(self, screen: Screen, children: Sequence[str]) -> None:
        self._screen = screen
        self._width = max(len(name) for name in children)
        self._started = time.monotonic()
        self._status = Status("", console=screen.console) if screen.live else None
        self._muted = False

    def begin(self) -> None:
        """Count the seconds of the checklist from now."""
        self._started = time.monotonic()

    def log(self, name: str, text: str) -> None:
        """Show one line of a child's output, after the child's name."""
        if self._muted:
            return
        line = Text(f"{name:<{self._width}} │ ", style=COLOURS.get(name, "yellow"))
        line.append(printable(text), style="default")
        try:
            self._screen.console.print(line, soft_wrap=True)
        except OSError:
            self._muted = True  # the terminal was closed; the log files go on

    def say(self, text: str, style: str = "") -> None:
        """Show a remark of the supervisor."""
        if self._muted:
            return
        try:
            self._screen.line(text, style)
        except OSError:
            self._muted = True

    def check(self, item: str, ok: bool, detail: str = "") -> None:
        """Tick off one item of the start-up checklist."""
        spent_s = time.monotonic() - self._started
        mark = "✓" if ok else "✗"
        self.say(f"{mark} {item:<12} {detail}  ({spent_s:.1f} s)", "green" if ok else "bold red")
        self.event("check", name=item, ok=ok, detail=detail, elapsed_s=round(spent_s, 2))

    def waiting(self, items: Sequence[str]) -> None:
        """Show what is still missing; terminals only."""
        if self._status is None or self._muted:
            return
        if items:
            spent_s = time.monotonic() - self._started
            self._status.update(f"waiting for {', '.join(items)} · {spent_s:.0f} s")
            self._status.start()
        else:
            self._status.stop()

    def box(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Show names and values, in a box on a terminal."""
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        if not self._screen.live:
            self.say(title)
            for line in lines:
                self.say(f"  {line}")
            return
        panel = Panel(Text("\n".join(lines)), title=title, border_style="green", expand=False)
        try:
            self._screen.console.print(panel)
        except OSError:
            self._muted = True

    def event(self, kind: str, **fields: object) -> None:
        """Write one JSON line for scripts."""
        try:
            self._screen.event(kind, **fields)
        except OSError:
            self._muted = True

    def close(self) -> None:
        """Take the spinner away."""
        if self._status is not None and not self._muted:
            self._status.stop()
