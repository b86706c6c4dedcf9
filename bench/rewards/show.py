"""The tables of a measurement, and a picture of how reliable values are.

Owns their form. Knows nothing of how results are made.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.rewards.summary import Answers
from bench.statistics import Floats, Interval, percent, reliability
from cli.screen import Screen

SHOWN = 160
"""Most characters of a question or answer that are shown."""


def show(screen: Screen, results: Mapping[str, Any]) -> None:
    """Show all results for a person."""
    named = {**results["signals"], "Q": results["quality"]}
    screen.table(
        ["signal", "applies", "AUC", "AUC within", "on", "best pick right", "generated", "forward"],
        [
            [
                name,
                f"{found['applies'] / results['answers']:.0%}",
                _number(found["auc"]),
                _number(found["auc_within"]),
                f"{found['auc_within_questions']}",
                _share(found["pick"]["right"]),
                f"{found['generated_per_answer']:.1f}" if "generated_per_answer" in found else "",
                f"{found['forward_per_answer']:.0f}" if "forward_per_answer" in found else "",
            ]
            for name, found in named.items()
        ],
        title=f"{results['questions']} questions, {results['answers']} answers, "
        f"{_share(results['right'])} of them right; compute per answer",
    )
    screen.table(
        ["choice", "right", "against greedy"],
        [
            [name, _share(found["right"]), _share(found["against_greedy"], sign=True)]
            for name, found in (
                *results["picks"].items(),
                *((f"best by {name}", found["pick"]) for name, found in named.items()),
            )
        ],
        title="One answer per question, out of its samples",
    )
    at = results["threshold"]
    screen.line(f"Q ≥ {at['at']:g}: {at['answers']} answers, {_share(at['right'])} right")
    if results["confident_but_wrong"]:
        screen.line("confident but wrong:")
    for case in results["confident_but_wrong"]:
        signals = ", ".join(f"{name} {value:.2f}" for name, value in case["signals"].items())
        screen.line(f"  Q {case['quality']:.2f} ({signals})")
        screen.line(f"    asked:    {_short(case['question'])}")
        screen.line(f"    answered: {_short(case['answer'])}")
        screen.line(f"    expected: {_short(str(case['expected']))}")


def draw(path: Path, answers: Answers, quality: Floats) -> bool:
    """Draw the share of right answers by the value of each signal and of Q; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 5), layout="constrained")
    axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color="grey")
    for signal, values in {**answers.signals, "Q": quality}.items():
        there = ~np.isnan(values)
        if there.any():
            axes.plot(*reliability(values[there], answers.right[there]), marker="o", label=signal)
    axes.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel="value of the signal",
        ylabel="share of right answers",
        title="Reliability",
    )
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True


def _number(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['mean']:.3f} ({found['low']:.3f} … {found['high']:.3f})"


def _share(found: Mapping[str, float] | None, *, sign: bool = False) -> str:
    return "none" if found is None else percent(Interval(**found), sign=sign)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"
