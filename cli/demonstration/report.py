"""What a demo found.

Owns the numbers of the report and how they are shown. Nothing is left out when it speaks against
steering: a night that was refused, a lower accuracy and a changed answer are shown like the rest.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cli.demonstration.day import Tally
from cli.demonstration.labels import labels_right
from cli.demonstration.score import Scorer, paired_interval
from cli.demonstration.stream import Item
from cli.evidence import proof
from cli.gateway import Gateway
from cli.screen import Screen, bar, printable

EXAMPLES_SHOWN = 6
ANSWERS_SHOWN = 5
"""Most frequent answers of a pass: whether steering answers everything alike shows there."""
WIDTH = 44
BAR = 40


def accuracy(tally: Tally, items: Sequence[Item], scorer: Scorer) -> dict[str, Any]:
    """Return the counts of one day with how many of its answers, and of those remembered, are right."""
    right = right_ones(tally, items, scorer)
    stored = [reply.trace.get("remembered") == "stored" for reply in tally.replies]
    return {
        **tally.summary(),
        "right": sum(right),
        "accuracy": sum(right) / len(right),
        "stored": sum(stored),
        "stored_right": sum(good for good, kept in zip(right, stored, strict=True) if kept),
        "answers": dict(Counter(short(reply.text, 16) for reply in tally.replies).most_common(ANSWERS_SHOWN)),
    }


def labels_of(
    night: dict[str, Any], gateway: Gateway, day: Tally, items: Sequence[Item], scorer: Scorer
) -> dict[str, int]:
    """Return how many labels of the day's questions the night has kept, and how many of them are right."""
    version = night.get("version")
    manifest = gateway.get(f"/v1/priors/{version}") if version else {}
    known = {str(reply.trace.get("episode_id")): item for reply, item in zip(day.replies, items, strict=True)}
    return labels_right(
        manifest.get("episode_labels", ()),
        known,
        lambda episode: str(gateway.get(f"/v1/memory/episodes/{episode}")["answer_text"]),
        lambda text, item: scorer.correct(text, item.answer),
    )


def right_ones(tally: Tally, items: Sequence[Item], scorer: Scorer) -> list[bool]:
    """Return for each reply whether it is right."""
    return [scorer.correct(reply.text, item.answer) for reply, item in zip(tally.replies, items, strict=True)]


def comparison(plain: Tally, steered: Tally, items: Sequence[Item], scorer: Scorer) -> dict[str, Any]:
    """Return the difference in accuracy of two passes over the same questions."""
    pairs = list(zip(right_ones(plain, items, scorer), right_ones(steered, items, scorer), strict=True))
    differences = [float(after) - float(before) for before, after in pairs]
    low, high = paired_interval(differences)
    return {
        "difference": sum(differences) / len(differences),
        "low": low,
        "high": high,
        "newly_right": sum(after and not before for before, after in pairs),
        "newly_wrong": sum(before and not after for before, after in pairs),
    }


def harm(plain: Tally, steered: Tally) -> dict[str, Any]:
    """Return how many answers to unlike prompts are byte for byte those of plain decoding."""
    pairs = list(zip(plain.replies, steered.replies, strict=True))
    return {
        "prompts": len(pairs),
        "identical": sum(before.text == after.text for before, after in pairs),
        "by_mode": steered.summary()["by_mode"],
        "changed": [
            {"question": before.question, "mode": after.mode, "none": before.text, "low": after.text}
            for before, after in pairs
            if before.text != after.text
        ],
    }


def show_day(screen: Screen, day: dict[str, Any]) -> None:
    """Write what the first day did and remembered."""
    rows = [
        ("requests", day["questions"]),
        ("what ran", counts(day["by_mode"])),
        ("why", counts(day["by_reason"])),
        ("recalled something", day["recalled"]),
        ("memory", counts(day["remembered"])),
        (
            "reward, plain → steered",
            f"{shown(day['reward_before_mean'])} → {shown(day['reward_after_mean'])}",
        ),
        ("right answers", f"{day['right']} of {day['questions']} ({100 * day['accuracy']:.1f} %)"),
        ("right among the stored", f"{day['stored_right']} of {day['stored']}"),
        ("frequent answers", counts(day["answers"])),
        ("tokens", counts(day["tokens"])),
        ("median latency", f"{day['latency_median_s']:.2f} s"),
    ]
    screen.table(("day 1, effort medium", ""), rows)


def show_second_day(screen: Screen, passes: dict[str, dict[str, Any]], compared: dict[str, Any]) -> None:
    """Write all passes over the held-out questions, side by side."""
    rows = [
        (name, *(cell(passes[effort]) for effort in ("none", "medium", "low")))
        for name, cell in (
            ("right answers", lambda f: f"{f['right']} of {f['questions']} ({100 * f['accuracy']:.1f} %)"),
            ("frequent answers", lambda f: counts(f["answers"])),
            ("what ran", lambda f: counts(f["by_mode"])),
            ("recalled something", lambda f: f["recalled"]),
            ("mean similarity", lambda f: shown(f["similarity_mean"])),
            ("tokens per answer", lambda f: f"{f['tokens']['answers'] / f['questions']:.1f}"),
            ("generated for it", lambda f: f"{f['tokens']['generated'] / f['questions']:.1f}"),
            ("ended by themselves", lambda f: f"{f['finished']} of {f['questions']}"),
            ("median latency", lambda f: f"{f['latency_median_s']:.2f} s"),
        )
    ]
    screen.table(("day 2, held-out questions", "effort none", "effort medium, no prior", "effort low"), rows)
    screen.line(
        f"effort low against none: {100 * compared['difference']:+.1f} points"
        f" (95 % interval {100 * compared['low']:+.1f} … {100 * compared['high']:+.1f});"
        f" newly right {compared['newly_right']}, newly wrong {compared['newly_wrong']}"
    )


def show_examples(
    screen: Screen, plain: Tally, steered: Tally, items: Sequence[Item], scorer: Scorer
) -> None:
    """Write some questions whose answer changed, in the order of the stream."""
    changed = [
        (
            short(item.question.splitlines()[-1]),
            short(before.text),
            short(after.text) + (" ✓" if scorer.correct(after.text, item.answer) else " ✗"),
            item.answer,
            after.mode,
        )
        for item, before, after in zip(items, plain.replies, steered.replies, strict=True)
        if before.text != after.text
    ]
    if changed:
        headers = ("question", "none", "low", "expected", "ran")
        screen.table(headers, changed[:EXAMPLES_SHOWN], title=f"answers that changed ({len(changed)})")


def show_harm(screen: Screen, found: dict[str, Any]) -> None:
    """Write whether unlike prompts are still answered as plain."""
    screen.line(
        f"unlike prompts: {found['identical']} of {found['prompts']} answers byte-identical to plain"
        f" ({counts(found['by_mode'])})"
    )
    for change in found["changed"]:
        screen.line(f"  changed ({change['mode']}): {short(change['question'], 90)}", "yellow")


def show_rows(screen: Screen, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write where each row stands."""
    for row, found in rows.items():
        asked = " of 20" if found["standing"] == "on trial" else ""
        screen.line(
            f"{row}: {found['mean']:+.2f} on {found['n']} prompts, evidence {proof(found)}{asked},"
            f" {found['standing']}"
        )


def show_summary(screen: Screen, report: dict[str, Any]) -> None:
    """Write the whole demo as one table, and its accuracies as a picture."""
    day, night, compared = report["day_1"], report["night"], report["day_2"]["comparison"]
    plain, voted, low = (report["day_2"]["passes"][effort] for effort in ("none", "medium", "low"))
    harmed, trial = report["unrelated"], report["trial"]
    version = f" {night['version']}" if night.get("version") else ""
    standing = ", ".join(f"{row} {found['standing']}" for row, found in trial["rows"].items())
    screen.line()
    rows = [
        ("day 1", f"{day['questions']} questions at effort medium, {day['stored']} answers remembered"),
        ("night", f"{night['state']}{version}{_labels(night)}"),
        ("trial", f"{trial['questions']} questions explored in the morning; {standing or 'nothing to try'}"),
        (
            "held out",
            f"{plain['right']} of {plain['questions']} right plain, {voted['right']} by searching,"
            f" {low['right']} at effort low",
        ),
        (
            "difference",
            f"{100 * compared['difference']:+.0f} points"
            f" ({100 * compared['low']:+.0f} … {100 * compared['high']:+.0f} at 95 %),"
            f" {compared['newly_right']} newly right, {compared['newly_wrong']} newly wrong",
        ),
        ("unlike prompts", f"{harmed['identical']} of {harmed['prompts']} answers unchanged"),
        ("time", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["timings_s"].items())),
    ]
    screen.table(("summary", ""), rows)
    screen.line()
    shares = (
        ("plain", plain["accuracy"]),
        ("effort medium, without the prior", voted["accuracy"]),
        ("effort low, one pass, after the night", low["accuracy"]),
    )
    width = max(len(name) for name, _ in shares)
    for name, share in shares:
        screen.line(f"{name:<{width}}  {bar(share, BAR):░<{BAR}} {100 * share:.0f} % right")
    screen.line("one run with one seed: the interval says how far to trust it")


def _labels(night: dict[str, Any]) -> str:
    kept = night["labels"]
    return (
        f", {night['labels_right']} of {kept} labels right ({night['labels_right'] / kept:.0%})"
        if kept
        else ""
    )


def counts(found: dict[str, Any]) -> str:
    """Return named counts in one line, the largest first."""
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered) or "–"


def shown(value: float | None) -> str:
    """Return a measured value, a dash when there is none."""
    return "–" if value is None else f"{value:.3f}"


def short(text: str, width: int = WIDTH) -> str:
    """Return text as one line of at most `width` characters."""
    line = printable(text).replace("\n", " ⏎ ").strip()
    return line if len(line) <= width else line[: width - 1] + "…"
