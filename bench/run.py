"""The folder of a run that may be stopped and goes on.

Owns its head, `run.json`: machine, date, code and options of its beginning. Knows nothing of rows or results.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bench.machine import machine
from cli.failure import USAGE, CommandError
from memory.atomic import write_json


def open_run(
    folder: Path,
    benchmark: str,
    options: Mapping[str, Any],
    *,
    begun: bool,
    may_change: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the head of the run, that of its beginning when it goes on.

    Args:
        folder: Made when it is not there.
        benchmark: Name of the benchmark.
        options: Everything that results depend on, by name.
        begun: Whether results of it are there; the head of a run that came to nothing is replaced.
        may_change: Options that a run may go on with when they changed.
        defaults: What options are that nobody gave. One that the run does not tell of came with a later
            build, and at its default changes nothing.

    Raises:
        CommandError: exit code 2, the folder holds a run with other options, or one of an earlier version.
    """
    path = folder / "run.json"
    wanted = json.loads(json.dumps(options))
    if begun and path.exists():
        head: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "build" not in head:
            raise CommandError(
                f"{folder} holds a run of an earlier version, which did not keep all options",
                "name another folder",
                USAGE,
            )
        told = [_flat(head["settings"]), _flat(json.loads(json.dumps(defaults or {})))]
        changed = [
            name
            for name, value in _flat(wanted).items()
            if name not in may_change and value not in [known[name] for known in told if name in known][:1]
        ]
        if changed:
            raise CommandError(
                f"{folder} holds a run with other options: {', '.join(changed)}",
                "name another folder, or give the options that this run was started with",
                USAGE,
            )
        return head
    folder.mkdir(parents=True, exist_ok=True)
    head = {"benchmark": benchmark, **machine(), "settings": wanted}
    write_json(path, head)
    return head


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with the server's settings, which are one of them, beside the others."""
    return {**{n: value for n, value in options.items() if n != "settings"}, **options.get("settings", {})}


def read_head(folder: Path, benchmark: str) -> dict[str, Any]:
    """Return the head of a run that is there.

    Raises:
        CommandError: exit code 2, the folder holds none of this benchmark.
    """
    try:
        head: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(
            f"{folder} holds no run: {error}", f"name folders of `latentevolve bench {benchmark}`", USAGE
        ) from error
    if head.get("benchmark") != benchmark:
        raise CommandError(
            f"{folder} holds a run of {head.get('benchmark')}, not of {benchmark}", None, USAGE
        )
    return head
