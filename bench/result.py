"""What a benchmark found, on its way out.

Owns the JSON document (machine, settings, results) and the file it goes to. Knows nothing of what was
measured.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.machine import describe, machine
from cli.options import check_folder
from cli.screen import Screen
from memory.atomic import write_json

Output = Annotated[
    Path | None, typer.Option("--output", help="Write the JSON document to this file.", metavar="FILE")
]


class Report:
    """The document of one run: opened before it, so that a date and a load of before stand in it."""

    def __init__(
        self, screen: Screen, benchmark: str, settings: Mapping[str, Any], output: Path | None
    ) -> None:
        check_folder(output, "--output")
        self._screen, self._output = screen, output
        self._head = {"benchmark": benchmark, **machine(), "settings": dict(settings)}
        screen.line(describe(self._head))

    def publish(self, results: Mapping[str, Any]) -> None:
        """Write the document: to the file, and to stdout with --json."""
        document = finite({**self._head, "results": dict(results)})
        self._screen.document(document)
        if self._output is not None:
            write_json(self._output, document)
            self._screen.note(f"report: {self._output}")


def finite(value: Any) -> Any:
    """Return `value` with None for every number that JSON cannot hold, such as an interval of one."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value
