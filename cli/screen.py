"""Where a command writes.

Owns the three ways of writing: rich on a terminal, plain lines in a pipe, JSON on stdout with
everything else on stderr. Knows nothing of what is written.
"""

import json
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def printable(text: str) -> str:
    """Return `text` without control characters, line breaks and tabs kept.

    Answers and log lines are not ours: an escape sequence in one must not reach the terminal.
    """
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit on the spot; a supervisor has children to end first


def console(stream: TextIO) -> Console:
    """Return a console that is rich only when `stream` is a terminal, whatever FORCE_COLOR says."""
    return _Console(file=stream, force_terminal=stream.isatty(), highlight=False, markup=False, emoji=False)


class Screen:
    """The output of one command."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.notes = console(sys.stderr)
        """Remarks that are not the result: always stderr."""
        self.console = self.notes if as_json else console(sys.stdout)
        """What a person reads: stdout, or stderr when stdout carries JSON."""

    @property
    def live(self) -> bool:
        """Whether bars and spinners may be drawn."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line for a person."""
        write(self.console, text, style)

    def note(self, text: str, style: str = "") -> None:
        """Write one remark on stderr."""
        write(self.notes, text, style)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show a spinner while something takes its time; terminals only."""
        if self.live:
            with self.console.status(Text(text)):
                yield
        else:
            yield

    def document(self, value: Any) -> None:
        """Write the result as one indented JSON document; nothing unless --json was given."""
        if self.as_json:
            print(json.dumps(value, indent=2, ensure_ascii=False, default=str), flush=True)

    def event(self, kind: str, **fields: Any) -> None:
        """Write one JSON line; nothing unless --json was given."""
        if self.as_json:
            print(json.dumps({"event": kind, **fields}, ensure_ascii=False, default=str), flush=True)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
        """Write a table: drawn on a terminal, aligned columns in a pipe."""
        cells = [[printable(str(cell)) for cell in row] for row in rows]
        if not self.live:
            if title:
                self.line(title)
            for text in aligned([list(headers), *cells]):
                self.line(text)
            return
        table = Table(*headers, title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)


def write(target: Console, text: str, style: str = "") -> None:
    """Write one line, unwrapped and without control characters."""
    target.print(Text(printable(text), style=style), soft_wrap=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns are two blanks apart, without trailing blanks."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def bar(share: float, width: int = 30) -> str:
    """Return a bar of `share` (0 to 1) of `width` characters; a share above 0 shows something."""
    return "█" * max(round(share * width), 1 if share > 0 else 0)
