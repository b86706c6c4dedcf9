"""The report of a run: a page of Markdown and pictures.

Owns their form. Knows nothing of how a run is done.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import describe
from bench.stream.runner import START
from bench.stream.summary import Row, Score, days, scores, unlike
from worker.bootstrap import Interval

_MARKERS = "os^D"
HEADERS = ("stage", "arm", "n", "right", "against plain", "tokens", "finished", "generated", "forward", "s")


def table(found: Sequence[Score]) -> list[list[str]]:
    """Return a row of text per arm and stage."""
    rows = []
    for score in found:
        arm = score.arm if score.any_correct is None else f"{score.arm} (any right {score.any_correct:.1%})"
        rows.append(
            [
                score.stage,
                arm,
                str(score.n),
                _share(score.accuracy),
                "" if score.against_plain is None else _share(score.against_plain, sign=True),
                f"{score.tokens:.1f}",
                f"{score.finished:.0%}",
                f"{score.generated:.0f}",
                f"{score.forward:.0f}",
                f"{score.wall_s:.2f}",
            ]
        )
    return rows


def write_report(folder: Path, head: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write `report.md` into the run's folder, and its pictures when matplotlib is there."""
    found = scores(rows)
    plan = head["settings"]
    lines = [
        "# A stream of days and nights",
        "",
        f"{plan['model']}, {plan['data']}, seeds {sorted({row['seed'] for row in rows})}. "
        f"{head['date']}, {describe(head)}.",
        "",
        f"Answers of at most {plan['max_tokens']} tokens; instruction: `{plan['instruction'] or '(none)'}`.",
        "",
        "Accuracy with 95 % intervals over questions; differences are paired. *generated* and *forward* are",
        "mean tokens per question, everything that the arm decoded included.",
        "",
        *_markdown(HEADERS, table(found)),
        "",
        "## Days",
        "",
        *_markdown(
            ("day", "asked", "remembered", "of these right", "tokens", "AUC of the reward among them"),
            [
                [
                    d.stage,
                    str(d.asked),
                    str(d.remembered),
                    _percent(d.right),
                    _number(d.tokens),
                    _number(d.auc, 2),
                ]
                for d in days(rows)
            ],
        ),
        "",
        "## Nights",
        "",
        *_markdown(
            ("seed", "night", "state", "version", "episodes", "s", "why"),
            [
                [
                    str(row[name])
                    for name in ("seed", "stage", "state", "version", "episodes", "wall_s", "message")
                ]
                for row in rows
                if row["arm"] == "night"
            ],
        ),
        "",
        "## Prompts unlike the stream",
        "",
        *_markdown(
            ("stage", "answers that stayed the same"),
            [[stage, f"{same} of {of}"] for stage, (same, of) in unlike(rows).items()],
        ),
        "",
    ]
    pictures = draw(folder, found)
    lines += [f"![{path.stem}]({path.name})" for path in pictures]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(folder: Path, found: Sequence[Score]) -> list[Path]:
    """Draw accuracy by night and accuracy against compute; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    stages = list(dict.fromkeys(score.stage for score in found))
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for arm in dict.fromkeys(score.arm for score in found):
        mine = [score for score in found if score.arm == arm]
        if [score.stage for score in mine] == [START]:
            axes.axhline(mine[0].accuracy.mean, linestyle="--", linewidth=1, color="grey")
            axes.annotate(arm, (0, mine[0].accuracy.mean), fontsize=8, color="grey", va="bottom")
            continue
        at = [stages.index(score.stage) for score in mine]
        means = [score.accuracy.mean for score in mine]
        (line,) = axes.plot(at, means, marker="o", label=arm)
        low = [max(score.accuracy.low, 0) for score in mine]
        axes.fill_between(
            at, low, [min(s.accuracy.high, 1) for s in mine], alpha=0.15, color=line.get_color()
        )
    axes.set_xticks(range(len(stages)), stages)
    axes.set(ylabel="share of right answers", title="Accuracy by night (95 % intervals over questions)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    by_night = folder / "accuracy-by-night.png"
    figure.savefig(by_night, dpi=150)
    pyplot.close(figure)

    figure, axes = pyplot.subplots(figsize=(8.5, 4.5), layout="constrained")
    for number, score in enumerate(found):
        axes.errorbar(
            score.forward,
            score.accuracy.mean,
            yerr=[
                [max(score.accuracy.mean - score.accuracy.low, 0)],
                [max(score.accuracy.high - score.accuracy.mean, 0)],
            ],
            fmt=_MARKERS[number // 10 % len(_MARKERS)],  # ten colours, then another shape
            color=f"C{number % 10}",
            markersize=5,
            elinewidth=0.8,
            label=f"{score.arm}, {score.stage}",
        )
    axes.set(
        xscale="log",
        xlabel="forward-equivalent tokens per question",
        ylabel="share of right answers",
        title="Accuracy against compute (95 % intervals over questions)",
    )
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.0f}"))
    axes.xaxis.set_minor_formatter(ticker.StrMethodFormatter("{x:.0f}"))
    if found:
        figure.legend(loc="outside right upper", fontsize=7)
    by_compute = folder / "accuracy-against-compute.png"
    figure.savefig(by_compute, dpi=150)
    pyplot.close(figure)
    return [by_night, by_compute]


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    return lines + ["| " + " | ".join(row) + " |" for row in cells]


def _share(found: Interval, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{found.mean:{plus}.1%} ({found.low:{plus}.1%} … {found.high:{plus}.1%})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"
