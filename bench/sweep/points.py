"""Runs of the stream that differ in one option.

Owns which option that is, in which order its values stand, and how runs compare on the same questions.
Knows nothing of tables or pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.run import read_head
from bench.statistics import Interval
from bench.stream.journal import builds, read_rows
from bench.stream.plan import plan_at_default
from bench.stream.summary import Row, Score, answers_of, paired, remembered, scores
from cli.failure import USAGE, CommandError

_LEFT_OUT = frozenset({"nights", "arms", "data", "also", "unlike"})
"""Options that runs may differ in all the same: the digests say whether files do."""


@dataclass(frozen=True)
class Point:
    """One arm of one run, at the last stage that all runs have."""

    value: str
    """Of the option in which the runs differ."""
    score: Score
    against_first: Interval | None
    """Difference to the run of the first value, paired by question; None for that run itself, and where
    no question was asked in both."""


@dataclass(frozen=True)
class Sweep:
    """Runs in the order of the option's values."""

    option: str
    values: tuple[str, ...]
    points: tuple[Point, ...]
    """Arm by arm, in the order of the values."""
    seeds: tuple[int, ...]
    """That all runs have; others are left out."""
    nights: tuple[tuple[str, ...], ...]
    """How those nights of each run ended that all have."""
    remembered: tuple[int, ...]
    """Answers that those days of each run left that all have."""
    builds: tuple[str, ...]
    """Of the code that made the runs."""


def read(folders: Sequence[Path]) -> Sweep:
    """Compare runs of the stream.

    Raises:
        CommandError: exit code 2, a folder holds no run, they do not differ in exactly one option, or they
            have no seed in common.
    """
    runs = [(_options(folder), read_rows(folder / "rows.jsonl")) for folder in folders]
    option = _differing([options for options, _ in runs])
    runs.sort(key=lambda run: _order(run[0].get(option, "")))
    values = tuple(run[0].get(option, "") for run in runs)
    seeds = set.intersection(*({row["seed"] for row in found} for _, found in runs))
    if not seeds:
        raise CommandError("the runs have no seed in common", "let each run finish a stage first", USAGE)
    rows = [[row for row in found if row["seed"] in seeds] for _, found in runs]
    days = [remembered(of) for of in rows]
    nights = [
        {(row["seed"], row["stage"]): row["state"] for row in of if row["arm"] == "night"} for of in rows
    ]
    return Sweep(
        option=option.removeprefix("settings."),
        values=values,
        points=tuple(_points(values, rows)),
        seeds=tuple(sorted(seeds)),
        nights=tuple(tuple(of[key] for key in _shared(nights)) for of in nights),
        remembered=tuple(sum(len(of[stage]) for stage in _shared(days)) for of in days),
        builds=builds(row for of in rows for row in of),
    )


def _shared(runs: Sequence[Mapping[Any, Any]]) -> list[Any]:
    """Return the keys that all have, in the order of the first."""
    return [key for key in runs[0] if all(key in of for of in runs)]


def _options(folder: Path) -> dict[str, str]:
    """Return every option of a run by name, the server's settings under `settings.`, all as text."""
    head = read_head(folder, "stream")
    known = plan_at_default()  # what came with a later build was at its default before
    plan = known | head["settings"]
    settings = {
        f"settings.{name}": value
        for name, value in (known["settings"] | head["settings"]["settings"]).items()
    }
    return {
        name: str(value) for name, value in plan.items() if name not in {"settings", *_LEFT_OUT}
    } | settings


def _differing(runs: Sequence[Mapping[str, str]]) -> str:
    known = dict.fromkeys(name for options in runs for name in options)
    names = [name for name in known if len({options.get(name) for options in runs}) > 1]
    if len(names) != 1 or names == ["digests"]:
        found = ", ".join(name.removeprefix("settings.") for name in names) or "nothing"
        raise CommandError(
            f"the runs differ in {found.replace('digests', 'their data')}; a sweep needs exactly one option",
            "make runs that are alike but for one --setting or option",
            USAGE,
        )
    (name,) = names
    values = [options.get(name) for options in runs]
    if len(set(values)) < len(values):
        raise CommandError(f"two runs have the same {name.removeprefix('settings.')}", None, USAGE)
    return name


def _order(value: str) -> tuple[float, str]:
    """Numbers by size, then words."""
    try:
        return float(value), value
    except ValueError:
        return np.inf, value


def _points(values: Sequence[str], runs: Sequence[Sequence[Row]]) -> list[Point]:
    found = [{(score.arm, score.stage): score for score in scores(rows)} for rows in runs]
    last = dict(_shared(found))  # by arm; a later stage replaces an earlier one
    points = []
    for arm, stage in last.items():
        for value, of, rows in zip(values, found, runs, strict=True):
            mine, first = (answers_of(of, arm, stage) for of in (rows, runs[0]))
            against = None if rows is runs[0] else paired(mine, first)
            points.append(Point(value, of[arm, stage], against))
    return points
