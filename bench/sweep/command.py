"""`latentevolve bench sweep`.

Owns its options, the table and the picture. Runs nothing: the runs are those of `bench stream`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.result import finite
from cli.failure import USAGE, CommandError
from cli.options import Json, check_folder
from cli.screen import Screen

if TYPE_CHECKING:
    from bench.sweep.points import Sweep


def sweep(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs that differ in one option.")],
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw accuracy against the option.", metavar="PNG")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs of `bench stream` in which one option differs."""
    from bench.statistics import percent
    from bench.stream.journal import several
    from bench.sweep.points import read

    screen = Screen(as_json)
    check_folder(picture, "--picture")
    if len(runs) < 2:
        raise CommandError("a sweep needs two runs or more", "name their folders", USAGE)
    found = read(runs)
    screen.table(
        [found.option, "remembered", "nights"],
        [
            [value, remembered, ", ".join(nights) or "none"]
            for value, remembered, nights in zip(found.values, found.remembered, found.nights, strict=True)
        ],
        title=f"What days left and how nights ended; seeds {', '.join(map(str, found.seeds))}",
    )
    screen.table(
        ["arm", "stage", found.option, "n", "right", f"against {found.values[0]}", "tokens", "forward"],
        [
            [
                point.score.arm,
                point.score.stage,
                point.value,
                point.score.n,
                percent(point.score.accuracy),
                "" if point.against_first is None else percent(point.against_first, sign=True),
                f"{point.score.tokens:.1f}",
                f"{point.score.forward:.0f}",
            ]
            for point in found.points
        ],
        title=f"Accuracy by {found.option} (95 % intervals over questions, paired differences)",
    )
    if said := several(found.builds):
        screen.note(said)
    if picture is not None:
        _draw(found, picture)
        screen.note(f"picture: {picture}")
    screen.document(finite(asdict(found)))


def _draw(found: "Sweep", path: Path) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise CommandError("a picture needs matplotlib", "install latentevolve[bench]") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    from bench.stream.pictures import reach

    arms: Sequence[str] = list(dict.fromkeys(point.score.arm for point in found.points))
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, arm in enumerate(arms):
        mine = [point for point in found.points if point.score.arm == arm]
        # Side by side, so that intervals of different arms do not hide each other.
        shift = 0.3 * (number - (len(arms) - 1) / 2) / len(arms)
        for at, point in enumerate(mine):
            axes.errorbar(
                at + shift,
                point.score.accuracy.mean,
                yerr=reach(point.score.accuracy),
                fmt="o",
                color=f"C{number % 10}",
                elinewidth=1,
                label=f"{arm}, {point.score.stage}" if at == 0 else None,
            )
    axes.set_xticks(range(len(found.values)), found.values)
    axes.set(xlabel=found.option, ylabel="share of right answers", title=f"Accuracy by {found.option}")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
