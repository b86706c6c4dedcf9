"""Pictures of a run: accuracy by night, accuracy against compute, and how reliable the days' rewards were.

Owns their form. Knows nothing of how a run is done.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.statistics import Interval, auc, reliability
from bench.stream.runner import START
from bench.stream.summary import MAJORITY, Row, Score, remembered


def draw(folder: Path, found: Sequence[Score], rows: Sequence[Row]) -> list[Path]:
    """Draw into the folder and return the files; nothing without matplotlib.

    Accuracies have a panel per set of questions, and each arm its colour in all of them.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets: dict[str, list[Score]] = {}
    for score in found:
        sets.setdefault(_set(score), []).append(score)
    colours = {arm: f"C{number}" for number, arm in enumerate(dict.fromkeys(map(_arm, found)))}

    def panels(fill: Callable[[Any, Sequence[Score], Mapping[str, str]], None], title: str) -> Any:
        count = max(len(sets), 1)
        figure, axes = pyplot.subplots(
            1, count, figsize=(1.5 + 5 * count, 4.5), layout="constrained", sharey=True, squeeze=False
        )
        for (name, mine), panel in zip(sets.items(), axes[0], strict=False):
            fill(panel, mine, colours)
            panel.set(title=(name or "stream").replace("_", " "))
        axes[0][0].set(ylabel="share of right answers", ylim=(-0.03, None))
        named = {
            label: line
            for panel in axes[0]
            for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        if named:
            figure.legend(named.values(), named.keys(), loc="outside right upper", fontsize=8)
        figure.suptitle(f"{title} (95 % intervals over questions)")
        return figure

    def calibration() -> Any:
        figure, axes = pyplot.subplots(figsize=(6, 4.5), layout="constrained")
        _calibration(axes, rows)
        return figure

    pictures: dict[str, Callable[[], Any]] = {
        "accuracy-by-night": lambda: panels(_by_night, "Accuracy by night"),
        "accuracy-against-compute": lambda: panels(_against_compute, "Accuracy against compute"),
        "reward-calibration": calibration,
    }
    paths = []
    for name, made in pictures.items():
        figure = made()
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
        paths.append(path)
    return paths


def _set(score: Score) -> str:
    return score.arm.partition("@")[2]


def _arm(score: Score) -> str:
    """Return the arm without its set; all majorities are one."""
    arm = score.arm.partition("@")[0]
    return MAJORITY if arm.startswith(MAJORITY) else arm


def reach(accuracy: Interval) -> list[list[float]]:
    """Return how far an interval reaches below and above its mean, as error bars want it: (2, 1)."""
    return [[max(accuracy.mean - accuracy.low, 0)], [max(accuracy.high - accuracy.mean, 0)]]


def _by_night(axes: Any, found: Sequence[Score], colours: Mapping[str, str]) -> None:
    stages = list(dict.fromkeys(score.stage for score in found))
    for arm in dict.fromkeys(score.arm for score in found):
        if arm.startswith(f"{MAJORITY} of "):
            continue  # of fewer samples: those stand in the picture of compute
        mine = [score for score in found if score.arm == arm]
        at, style = [stages.index(score.stage) for score in mine], "o-"
        if [score.stage for score in mine] == [START]:  # asked once: a level
            at, mine, style = [0, max(len(stages) - 1, 1)], mine * 2, "--"
        name = _arm(mine[0])
        axes.plot(at, [score.accuracy.mean for score in mine], style, color=colours[name], label=name)
        low = [max(score.accuracy.low, 0) for score in mine]
        high = [min(score.accuracy.high, 1) for score in mine]
        axes.fill_between(at, low, high, alpha=0.12, color=colours[name], linewidth=0)
    axes.set_xticks(range(len(stages)), stages)


def _against_compute(axes: Any, found: Sequence[Score], colours: Mapping[str, str]) -> None:
    from matplotlib import ticker

    for name in dict.fromkeys(map(_arm, found)):
        mine = sorted((score for score in found if _arm(score) == name), key=_place)
        at, means = [score.forward for score in mine], [score.accuracy.mean for score in mine]
        axes.errorbar(
            at,
            means,
            yerr=np.hstack([reach(score.accuracy) for score in mine]),
            fmt="o:",
            color=colours[name],
            markersize=5,
            linewidth=0.8,
            elinewidth=0.6,
            label=name,
        )
        for score in mine:
            number = _number(score)
            axes.annotate(
                number, (score.forward, score.accuracy.mean), (5, 4), textcoords="offset points", fontsize=8
            )
    axes.set(
        xscale="log",
        xlabel="forward-equivalent tokens per question\n(beside points: night, or samples that vote)",
    )
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.0f}"))
    low, high = axes.get_xlim()
    few = high / low < 10  # more minor ticks would write over each other
    axes.xaxis.set_minor_formatter(ticker.StrMethodFormatter("{x:.0f}" if few else ""))


def _place(score: Score) -> tuple[float, float]:
    """Order of the points of one arm: by night, majorities by their compute."""
    return (0, score.forward) if _arm(score) == MAJORITY else (float(_number(score) or 0), 0)


def _number(score: Score) -> str:
    """Return the number of the night, or of the samples where fewer than all vote; "" for neither."""
    text = score.arm.partition("@")[0] if _arm(score) == MAJORITY else score.stage
    return text.rpartition("-")[2] if text.startswith("night-") else text.partition(" of ")[2]


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
