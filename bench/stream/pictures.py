"""Pictures of a run: accuracy by night, accuracy against compute, and how reliable the days' rewards were.

Owns their form. Knows nothing of how a run is done.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.rewards.pictures import reliability
from bench.stream.runner import START
from bench.stream.summary import MAJORITY, Row, Score, auc, remembered
from worker.bootstrap import Interval

_MARKERS = "os^D"


def draw(folder: Path, found: Sequence[Score], rows: Sequence[Row]) -> list[Path]:
    """Draw into the folder and return the files; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pictures: dict[str, tuple[float, Callable[[Any], None]]] = {
        "accuracy-by-night": (8.5, lambda axes: _by_night(axes, found)),
        "accuracy-against-compute": (8.5, lambda axes: _against_compute(axes, found)),
        "reward-calibration": (6, lambda axes: _calibration(axes, rows)),
    }
    paths = []
    for name, (width, fill) in pictures.items():
        figure, axes = pyplot.subplots(figsize=(width, 4.5), layout="constrained")
        fill(axes)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
        paths.append(path)
    return paths


def reach(accuracy: Interval) -> list[list[float]]:
    """Return how far an interval reaches below and above its mean, as error bars want it: (2, 1)."""
    return [[max(accuracy.mean - accuracy.low, 0)], [max(accuracy.high - accuracy.mean, 0)]]


def _by_night(axes: Any, found: Sequence[Score]) -> None:
    stages = list(dict.fromkeys(score.stage for score in found))
    levels: dict[float, list[str]] = {}  # arms that are asked once
    for arm in dict.fromkeys(score.arm for score in found):
        mine = [score for score in found if score.arm == arm]
        if [score.stage for score in mine] == [START]:
            levels.setdefault(mine[0].accuracy.mean, []).append(arm)
            continue
        at = [stages.index(score.stage) for score in mine]
        (line,) = axes.plot(at, [score.accuracy.mean for score in mine], marker="o", label=arm)
        low = [max(score.accuracy.low, 0) for score in mine]
        high = [min(score.accuracy.high, 1) for score in mine]
        axes.fill_between(at, low, high, alpha=0.15, color=line.get_color())
    for level, arms in levels.items():
        axes.axhline(level, linestyle="--", linewidth=1, color="grey")
        axes.annotate(", ".join(arms), (0, level), fontsize=8, color="grey", va="bottom")
    axes.set_xticks(range(len(stages)), stages)
    axes.set(ylabel="share of right answers", title="Accuracy by night (95 % intervals over questions)")
    if axes.get_legend_handles_labels()[0]:
        axes.figure.legend(loc="outside right upper", fontsize=8)


def _against_compute(axes: Any, found: Sequence[Score]) -> None:
    from matplotlib import ticker

    for number, score in enumerate(found):
        axes.errorbar(
            score.forward,
            score.accuracy.mean,
            yerr=reach(score.accuracy),
            fmt=_MARKERS[number // 10 % len(_MARKERS)],  # ten colours, then another shape
            color=f"C{number % 10}",
            markersize=5,
            elinewidth=0.8,
            label=f"{score.arm}, {score.stage}",
        )
    curves: dict[str, list[tuple[float, float]]] = {}
    for score in found:
        if score.arm.startswith(MAJORITY):
            curves.setdefault(score.arm.partition("@")[2], []).append((score.forward, score.accuracy.mean))
    for points in curves.values():
        axes.plot(*zip(*sorted(points), strict=True), linestyle=":", linewidth=1, color="grey")
    axes.set(
        xscale="log",
        xlabel="forward-equivalent tokens per question",
        ylabel="share of right answers",
        title="Accuracy against compute (95 % intervals over questions)",
    )
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.0f}"))
    low, high = axes.get_xlim()
    few = high / low < 10  # more minor ticks would write over each other
    axes.xaxis.set_minor_formatter(ticker.StrMethodFormatter("{x:.0f}" if few else ""))
    if found:
        axes.figure.legend(loc="outside right upper", fontsize=7)


def _calibration(axes: Any, rows: Sequence[Row]) -> None:
    axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color="grey")
    for stage, kept in remembered(rows).items():
        rewards = [one["reward"] for one in kept]
        right = [one["correct"] for one in kept]
        area = auc(rewards, right)
        known = f"{len(kept)} answers" if area is None else f"{len(kept)} answers, AUC {area:.2f}"
        axes.plot(*reliability(np.array(rewards), np.array(right)), marker="o", label=f"{stage}: {known}")
    axes.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel="reward of remembered answers, by tenths",
        ylabel="share of right answers",
        title="Calibration of the reward by day",
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
