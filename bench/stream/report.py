"""The report of a run: a page of Markdown.

Owns its form and names the pictures. Knows nothing of how a run is done.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import describe
from bench.statistics import percent
from bench.stream.journal import builds, several
from bench.stream.pictures import draw
from bench.stream.summary import Against, Row, Score, costs, days, scores, unlike

HEADERS = (
    "stage",
    "arm",
    "n",
    "right",
    "against plain",
    "against nearest majority",
    "tokens",
    "finished",
    "generated",
    "forward",
    "s",
)


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
                percent(score.accuracy),
                "" if score.against_plain is None else percent(score.against_plain, sign=True),
                "" if score.against_majority is None else _against(score.against_majority),
                f"{score.tokens:.1f}",
                f"{score.finished:.0%}",
                f"{score.generated:.0f}",
                f"{score.forward:.0f}",
                "" if score.wall_s is None else f"{score.wall_s:.2f}",
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
        "Accuracy with Wilson's 95 % intervals over questions; differences are paired, with bootstrap",
        "intervals. *generated* and *forward* are mean tokens per question, everything that the arm decoded",
        "included. The nearest majority is the one whose *forward* is nearest on the same questions; those",
        "of fewer samples are parts of the same samples.",
        *([said, ""] if (said := several(builds(rows))) else [""]),
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
            ("seed", "night", "state", "version", "episodes", "labels", "of these right", "s", "why"),
            [
                [
                    *(str(row[name]) for name in ("seed", "stage", "state", "version", "episodes")),
                    *_labels(row),
                    *(str(row[name]) for name in ("wall_s", "message")),
                ]
                for row in rows
                if row["arm"] == "night"
            ],
        ),
        "",
        "What days and nights have computed until then, exploring included, per seed. It is paid back when",
        "answering by the majority would have cost more; said where `low` is right at least as often.",
        "",
        *_markdown(
            ("night", "forward", "in plain answers", "paid back after answers"),
            [
                [c.stage, f"{c.forward:.0f}", _number(c.plain_answers, 0), _number(c.pays_after, 0)]
                for c in costs(rows, found)
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
    pictures = draw(folder, found, rows)
    lines += [f"![{path.stem}]({path.name})" for path in pictures]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _labels(night: Row) -> list[str]:
    """Return how many labels a night kept, and the share that is right; an older build did not tell."""
    kept = night.get("labels")
    return ["" if kept is None else str(kept), _percent(night["labels_right"] / kept) if kept else ""]


def _against(found: Against) -> str:
    name = found.arm.partition("@")[0]
    return f"{name}: {percent(found.difference, sign=True)} at {found.cost:.1f}× its tokens"


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    return lines + ["| " + " | ".join(row) + " |" for row in cells]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"
