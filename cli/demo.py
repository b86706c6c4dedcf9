"""`latentevolve demo`: a day, a night and the next day, on real questions.

Owns the order of the demo. Starts from an empty memory, scores answers here and never sends them,
and reports what happened whether or not it speaks for steering.
"""

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.chat import Chat
from cli.demonstration.day import Tally, plain_and_low, run_day
from cli.demonstration.report import (
    accuracy,
    comparison,
    harm,
    labels_of,
    show_day,
    show_examples,
    show_harm,
    show_rows,
    show_second_day,
    show_summary,
)
from cli.demonstration.score import Scorer
from cli.demonstration.stream import EXAMPLES, Item, read_items, read_prompts, split
from cli.demonstration.tree import own_tree
from cli.failure import INTERRUPTED
from cli.gateway import Gateway
from cli.night import NightProgress, follow_night, show_night, start_night, wait_until_served
from cli.options import ApiKey, CacheDir, Json, Model, check_folder, given, load_settings
from cli.progress import PhaseProgress
from cli.screen import Screen

UNRELATED = EXAMPLES / "unrelated.jsonl"
UNRELATED_TOKENS = 48
TRIAL_STEP = 12
"""Questions between two looks at what is on trial."""


def demo(
    data: Annotated[
        Path, typer.Option("--data", help="JSONL file with `question` and `answer` on each line.")
    ] = EXAMPLES / "topics.jsonl",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Questions of day 1.")] = 72,
    held_out: Annotated[int, typer.Option("--held-out", min=2, help="New questions of day 2.")] = 48,
    trial: Annotated[
        int, typer.Option("--trial", min=0, help="Most questions of day 2 that measure what is on trial.")
    ] = 72,
    unrelated: Annotated[int, typer.Option("--unrelated", min=1, help="Prompts unlike the stream.")] = 8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 8,
    instruction: Annotated[str, typer.Option("--instruction", help="Follows each question.")] = "",
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests at a time.")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Which questions are held out.")] = 0,
    model: Model = None,
    cache_dir: CacheDir = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="A running gateway instead of one of the demo's own.", metavar="URL"),
    ] = None,
    api_key: ApiKey = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write everything to this JSON file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the loop: a day, a night, new questions. Nothing is rigged."""
    screen = Screen(as_json)
    items = read_items(data)
    first, second, others = split(items, limit, held_out, seed)
    prompts = read_prompts(UNRELATED)[:unrelated]
    overrides = given(model=model, cache_dir=cache_dir)
    check_folder(report, "--report")
    load_settings(**overrides)  # what is wrong is said before anything starts
    scorer = Scorer(item.answer for item in items)
    show = Demonstration(screen, scorer, max_tokens, instruction, system, concurrency)
    started = time.monotonic()
    try:
        with show.timed("start"):
            stack = contextlib.ExitStack()
            address = url or stack.enter_context(_own_gateway(screen, overrides))
        with stack:
            settings = load_settings(**overrides, gateway_url=address, api_key=api_key)
            with Gateway(settings) as gateway, Chat(settings, gateway.models()[0]) as chat:
                found = show.run(gateway, chat, first, others[:trial], second, prompts)
    except KeyboardInterrupt:
        screen.note("interrupted", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    found = {"data": str(data), "seed": seed, **found}
    found["timings_s"]["all"] = time.monotonic() - started
    show_summary(screen, found)
    screen.document(found)
    if report is not None:
        report.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        screen.note(f"report: {report}")


@contextlib.contextmanager
def _own_gateway(screen: Screen, overrides: dict[str, Any]) -> Iterator[str]:
    """Run a tree on an empty temporary data directory and yield its URL."""
    with tempfile.TemporaryDirectory(prefix="latentevolve-demo-") as folder:
        screen.line("Starting a server of its own with an empty memory", "bold")
        with own_tree(screen, Path(folder), **overrides) as (address, _):
            yield address


class Demonstration:
    """One run of the demo against one gateway."""

    def __init__(
        self,
        screen: Screen,
        scorer: Scorer,
        max_tokens: int,
        instruction: str,
        system: str | None,
        concurrency: int,
    ) -> None:
        self._screen = screen
        self._scorer = scorer
        self._max_tokens = max_tokens
        self._instruction, self._system = instruction, system
        self._concurrency = concurrency
        self._timings: dict[str, float] = {}

    def run(
        self,
        gateway: Gateway,
        chat: Chat,
        first: list[Item],
        others: list[Item],
        second: list[Item],
        prompts: list[str],
    ) -> dict[str, Any]:
        """Run day 1, the night, day 2 and the unlike prompts; show and return what was found.

        In the morning of day 2 `others` are asked, as long as what the night has learned is on trial.
        """
        before = _episodes(gateway)
        self._screen.line(f"model {chat.model}, {before} episodes remembered so far")
        self._heading(f"Day 1: {len(first)} questions at effort medium; their answers are never sent")
        with self.timed("day 1"):
            day = self._day(chat, gateway, first, "medium")
        day_1 = accuracy(day, first, self._scorer)
        show_day(self._screen, day_1)

        self._heading("Night")
        with self.timed("night"), PhaseProgress(self._screen) as progress:
            night = follow_night(gateway, start_night(gateway), NightProgress(self._screen, progress).show)
        show_night(self._screen, night)
        night |= labels_of(night, gateway, day, first, self._scorer)
        self._screen.line(
            f"labels of day 1 that the night kept: {night['labels']}, {night['labels_right']} of them right"
        )

        with self.timed("trial"):
            wait_until_served(gateway, night)
            trial = self._trial(chat, gateway, others)

        self._heading(f"Day 2: {len(second)} new questions")
        with self.timed("day 2"):
            plain = self._day(chat, gateway, second, "none")
            # What searching finds on the same questions by the model alone, without the night's prior.
            voted = self._day(chat, gateway, second, "medium", prior="none", store=False)
            steered = self._day(chat, gateway, second, "low")
        passes = {
            effort: accuracy(tally, second, self._scorer)
            for effort, tally in (("none", plain), ("medium", voted), ("low", steered))
        }
        compared = comparison(plain, steered, second, self._scorer)
        show_second_day(self._screen, passes, compared)
        show_examples(self._screen, plain, steered, second, self._scorer)

        self._heading(f"{len(prompts)} prompts unlike anything remembered")
        with self.timed("unlike prompts"):
            unlike = self._unlike(chat, gateway, prompts)
        show_harm(self._screen, unlike)
        return {
            "model": chat.model,
            "episodes_before": before,
            "episodes_after": _episodes(gateway),
            "day_1": day_1,
            "night": night,
            "trial": trial,
            "day_2": {"passes": passes, "comparison": compared},
            "unrelated": unlike,
            "timings_s": self._timings,
        }

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how long a part takes."""
        started = time.monotonic()
        yield
        self._timings[name] = time.monotonic() - started

    def _trial(self, chat: Chat, gateway: Gateway, items: list[Item]) -> dict[str, Any]:
        """Ask questions that the server explores while any row is on trial; return how many, and the rows."""
        asked = 0
        rows = _rows(gateway)
        if items and _on_trial(rows):
            self._heading("Day 2, morning: what the night has learned is on trial")
        while asked < len(items) and _on_trial(rows):
            some = items[asked : asked + TRIAL_STEP]
            self._day(chat, gateway, some, "low", explore=True)
            asked += len(some)
            rows = _rows(gateway)
            show_rows(self._screen, rows)
        return {"questions": asked, "rows": rows}

    def _day(self, chat: Chat, gateway: Gateway, items: list[Item], effort: str, **options: Any) -> Tally:
        with PhaseProgress(self._screen) as progress:
            return run_day(
                chat,
                gateway,
                [item.asked(self._instruction) for item in items],
                [item.choices for item in items],
                latent={"effort": effort, **options},
                max_tokens=self._max_tokens,
                system=self._system,
                concurrency=self._concurrency,
                on_reply=lambda tally: progress.update(
                    f"effort {effort}", len(tally.replies), len(items), tally.line()
                ),
            )

    def _unlike(self, chat: Chat, gateway: Gateway, prompts: list[str]) -> dict[str, Any]:
        return harm(*plain_and_low(chat, gateway, prompts, max_tokens=UNRELATED_TOKENS))

    def _heading(self, text: str) -> None:
        self._screen.line()
        self._screen.line(text, "bold")


def _rows(gateway: Gateway) -> dict[str, Any]:
    """Return the evidence about each row of the active prior."""
    return dict((gateway.get("/v1/memory/stats").get("prior") or {}).get("rows") or {})


def _on_trial(rows: dict[str, Any]) -> bool:
    return any(found["standing"] == "on trial" for found in rows.values())


def _episodes(gateway: Gateway) -> int:
    return sum(int(space["episodes"]) for space in gateway.get("/v1/memory/stats")["spaces"].values())
