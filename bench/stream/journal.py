"""Rows of results on disk, so that a run that was killed goes on where it stopped.

Owns the file of JSON lines and which rows are there already. Knows nothing of what they say.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.machine import build


class Journal:
    """One file of rows. A row is known by its seed, stage, arm and question, and names the code that made it.

    A last line that was cut short by a kill is dropped when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows, whole = _whole_rows(path)
        if path.exists():
            with path.open("r+b") as file:
                file.truncate(whole)
        self._known = {_identity(row) for row in self.rows}

    def has(self, seed: int, stage: str, arm: str, question: str) -> bool:
        """Return whether this row was written before."""
        return (seed, stage, arm, question) in self._known

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows; they are on disk when this returns."""
        new = [row | {"build": build()} for row in rows]
        with self._path.open("a", encoding="utf-8", errors="surrogatepass") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
        self.rows += new
        self._known |= {_identity(row) for row in new}


def builds(rows: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """Return the builds of the code that made these rows, in their order."""
    return tuple(dict.fromkeys(row["build"] for row in rows if "build" in row))


def several(found: Sequence[str]) -> str:
    """Return what is to be said beside results of these builds; nothing of one."""
    return f"MADE BY {len(found)} BUILDS OF THE CODE: {', '.join(found)}" if len(found) > 1 else ""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run, which may still be under way; none when there is no file."""
    return _whole_rows(path)[0]


def _whole_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows whose lines are whole, and how many bytes these take."""
    rows, size = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            break
        rows.append(json.loads(line))
        size += len(line)
    return rows, size


def _identity(row: dict[str, Any]) -> tuple[int, str, str, str]:
    return row["seed"], row["stage"], row["arm"], row["question"]
