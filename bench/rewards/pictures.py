"""Pictures of a measurement: how reliable values are, and ROC curves.

Owns their form. Knows nothing of how answers were made.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench.rewards.answers import Answers
from bench.statistics import Bools, Floats

BINS = 10


def draw(folder: Path, answers: Answers, quality: Floats) -> list[Path]:
    """Draw into the folder and return the files; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves: Mapping[str, Floats] = {**answers.signals, "Q": quality}
    paths = []
    for name, title, labels, curve in (
        ("reliability", "Reliability", ("value of the signal", "share of right answers"), reliability),
        ("roc", "ROC over all answers", ("share of wrong answers above", "of right answers above"), roc),
    ):
        figure, axes = pyplot.subplots(figsize=(6, 5), layout="constrained")
        axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color="grey")
        for signal, values in curves.items():
            there = ~np.isnan(values)
            x, y = curve(values[there], answers.right[there])
            if len(x):
                axes.plot(x, y, marker="o" if name == "reliability" else None, label=signal)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=labels[0], ylabel=labels[1], title=title)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
        paths.append(path)
    return paths


def reliability(values: Floats, right: Bools) -> tuple[Floats, Floats]:
    """Return the mean value and the share of right answers of each tenth that holds any, both (≤ 10,)."""
    bins = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    held = [bins == number for number in np.unique(bins)]
    return np.array([values[at].mean() for at in held]), np.array([right[at].mean() for at in held])


def roc(values: Floats, right: Bools) -> tuple[Floats, Floats]:
    """Return the shares of wrong and of right answers at or above each value, from (0, 0) to (1, 1).

    Both empty without right and wrong answers.
    """
    if right.all() or not right.any():
        return np.zeros(0), np.zeros(0)
    steps = np.unique(values)[::-1]
    above = values[None, :] >= steps[:, None]  # (T, N)
    wrong, good = above[:, ~right].mean(axis=1), above[:, right].mean(axis=1)
    return np.concatenate([[0.0], wrong]), np.concatenate([[0.0], good])
