"""One run: seeds, days, nights and arms in their order.

Owns what is done next, what is skipped because its rows are there already, and how long the rest will take.
Knows nothing of how arms answer or what reports look like.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import chain, groupby
from statistics import fmean
from typing import Any, Protocol

from bench.stream.arms import ARMS
from bench.stream.journal import Journal
from bench.stream.plan import Plan
from bench.stream.questions import STREAM, Questions, Scorer
from bench.stream.reply import Reply
from cli.demonstration.labels import labels_right
from cli.demonstration.stream import Item
from cli.failure import CommandError

CHUNK = 16
"""Questions of a day between two writes of rows; each is explored with several rollouts."""
JUDGED = 64
"""Held-out questions between two writes of rows."""
REFINED = 4
"""The same of arms that refine, which take minutes per question."""
START = "start"
BROKEN = ("engine-error", "steering-failed", "search-failed", "-unavailable", "signal-lost")
"""Parts of reasons that tell of a failure: the server answers all the same, a measurement stops."""
SERVED, NIGHT, UNLIKE = "served", "night", "unlike"
"""Arms of rows that are no way to answer: a day's requests, a night, and prompts unlike the stream."""

Progress = Callable[[str, int, int, str], None]
"""Called with (phase, done, total, what is going on)."""


@dataclass(frozen=True)
class Lived:
    """What became of one request of a day."""

    mode: str
    episode: Mapping[str, Any] | None
    """What is remembered of it, as `memory/episode.py` sums it up; None: nothing is."""
    reply: Reply | None = None
    """What the client got; None: nobody decoded it."""


class Server(Protocol):
    """What a run asks: the loop in this process (`loop.py`), or a server that runs (`remote.py`)."""

    @property
    def spent(self) -> int | None:
        """Forward-equivalent tokens computed since it was opened; None: it does not tell."""
        ...

    def check_room(self, asked: Iterable[Item], unlike: Iterable[Item]) -> None:
        """Say before hours of work that a question is too long for its answer budget, where that is known."""
        ...

    async def live(self, items: Sequence[Item], seed: int) -> list[Lived]:
        """Serve some of a day's requests; what is worth it is remembered when this returns."""
        ...

    async def night(self, name: str, progress: Progress) -> dict[str, Any]:
        """Consolidate, once per name, and serve what was promoted.

        Returns the night's record, and under `labels` what it has taken for right: pairs of an episode's id
        and a choice, None for the answer as it was remembered. Under `resumed`: whether it was begun before.
        """
        ...

    async def ask(self, arm: str, items: Sequence[Item], seed: int) -> list[Reply]:
        """Let an arm answer; nothing is remembered of it."""
        ...

    async def unlike(self, items: Sequence[Item], seed: int) -> list[tuple[str, Reply]]:
        """Return plain answers, and those at `low`, to bare prompts."""
        ...


OpenServer = Callable[[int], AbstractAsyncContextManager[Server]]
"""Opens what a seed asks."""


@dataclass(frozen=True)
class Step:
    """A part of a run: questions that one arm answers at one stage."""

    stage: str
    arm: str
    questions: Questions
    chunk: int
    """Questions between two writes of rows."""

    @property
    def name(self) -> str:
        """The arm as rows have it."""
        return self.arm if self.questions.name == STREAM else f"{self.arm}@{self.questions.name}"

    @property
    def phase(self) -> str:
        """Name of it on a progress bar."""
        return self.stage if self.arm in (SERVED, NIGHT) else f"{self.stage} {self.arm}"


@dataclass(frozen=True)
class Runner:
    """Runs a plan; everything that is done is in the journal."""

    plan: Plan
    journal: Journal
    arms: Sequence[str]
    stream: Callable[[int], tuple[list[Questions], list[list[Item]], Scorer]]
    """Held-out questions, the days, and the scorer of the stream's file, for a seed."""
    unlike: Sequence[str]
    """Prompts unlike the stream, whose answers must stay what they are."""
    open_server: OpenServer
    progress: Progress
    stage_ended: Callable[[], None]

    async def run(self, seeds: Sequence[int]) -> None:
        """Run all seeds, one after the other."""
        steps = {seed: self._steps(seed) for seed in seeds}
        for seed in seeds:
            async with self.open_server(seed) as server:
                asked = (step.questions.items for step in steps[seed] if step.arm not in (NIGHT, UNLIKE))
                server.check_room(chain.from_iterable(asked), map(_item, self.unlike))
                for _, stage in groupby(steps[seed], key=lambda step: step.stage):
                    for step in stage:
                        await self._take(server, seed, step, steps)
                    self.stage_ended()

    def _steps(self, seed: int) -> list[Step]:
        held_out, days, scorer = self.stream(seed)
        steps = [self._judging(START, name, found) for name in self._asked(START) for found in held_out]
        for number, items in enumerate(days, start=1):
            stage = f"night-{number}"
            known = Questions(STREAM, list(chain(*days[:number])), scorer)
            steps.append(Step(f"day-{number}", SERVED, Questions(STREAM, items, scorer), CHUNK))
            steps.append(Step(stage, NIGHT, known, len(known.items)))
            steps += [self._judging(stage, name, found) for name in self._asked(stage) for found in held_out]
            unlike = Questions(STREAM, list(map(_item, self.unlike)), scorer)
            steps.append(Step(stage, UNLIKE, unlike, len(self.unlike)))
        return steps

    def _asked(self, stage: str) -> list[str]:
        """Return the arms that answer at a stage: what nights do not change is asked once, at the start."""
        return [
            name
            for name in self.arms
            if (ARMS[name].when == "once") == (stage == START) or (stage == START and name == "random")
        ]

    def _judging(self, stage: str, name: str, questions: Questions) -> Step:
        if not ARMS[name].refines:
            return Step(stage, name, questions, JUDGED)
        some = Questions(questions.name, questions.items[: self.plan.refined], questions.scorer)
        return Step(stage, name, some, REFINED)

    async def _take(self, server: Server, seed: int, step: Step, steps: Mapping[int, Sequence[Step]]) -> None:
        if step.arm == NIGHT:
            await self._night(server, seed, step, steps)
            return
        items = step.questions.items
        todo = [item for item in items if not self._has(seed, step, item)]
        for start in range(0, len(todo), step.chunk):
            chunk = todo[start : start + step.chunk]
            done = len(items) - len(todo) + start
            self.progress(step.phase, done, len(items), f"{step.questions.name}{self._left(steps)}")
            began, before = time.monotonic(), server.spent
            rows = await self._rows(server, seed, step, chunk)
            each: dict[str, Any] = {"wall_s": round((time.monotonic() - began) / len(chunk), 3)}
            if step.arm == SERVED:
                each["spent"] = _spent(server, before, len(chunk))
            self.journal.add(self._head(seed, step, item) | row | each for item, row in rows)
        if todo:
            self.progress(step.phase, len(items), len(items), step.questions.name)

    async def _rows(
        self, server: Server, seed: int, step: Step, items: Sequence[Item]
    ) -> list[tuple[Item, dict[str, Any]]]:
        scorer = step.questions.scorer
        if step.arm == SERVED:
            lived = await server.live(items, seed)
            rows = [_day_row(one, item, scorer) for item, one in zip(items, lived, strict=True)]
        elif step.arm == UNLIKE:
            both = await server.unlike(items, seed)
            rows = [{"correct": plain == low.text, **low.facts} for plain, low in both]
        else:
            replies = await server.ask(step.arm, items, seed)
            rows = [row_of(reply, item, scorer) for item, reply in zip(items, replies, strict=True)]
        return list(zip(items, rows, strict=True))

    async def _night(
        self, server: Server, seed: int, step: Step, steps: Mapping[int, Sequence[Step]]
    ) -> None:
        if self.journal.has(seed, step.stage, NIGHT, ""):
            return
        left = self._left(steps)
        self.progress(step.stage, 0, 1, f"consolidating{left}")
        began, before = time.monotonic(), server.spent

        def tell(phase: str, done: int, total: int, message: str) -> None:
            self.progress(f"{step.stage} {phase}", done, total, f"{message}{left}")

        record = await server.night(step.stage, tell)
        questions = {item.question: item for item in step.questions.items}
        kept = {
            row["remembered"]["episode"]: row
            for row in self.journal.rows
            if row["seed"] == seed and row["arm"] == SERVED and "episode" in row.get("remembered", ())
        }
        known = {episode: questions[row["question"]] for episode, row in kept.items()}
        row = self._head(seed, step, Item("", "")) | {
            "wall_s": round(time.monotonic() - began, 1),
            "spent": None if record.get("resumed") else _spent(server, before),
            "message": record["error"] or record["message"],
            **{name: record[name] for name in ("state", "episodes", "version", "evidence")},
            **labels_right(
                record["labels"],
                known,
                lambda episode: str(kept[episode]["remembered"]["text"]),
                step.questions.scorer.correct,
            ),
        }
        self.journal.add([row])
        self.progress(step.stage, 1, 1, record["state"])

    def _has(self, seed: int, step: Step, item: Item) -> bool:
        return self.journal.has(seed, step.stage, step.name, item.question)

    def _head(self, seed: int, step: Step, item: Item) -> dict[str, Any]:
        return {
            "seed": seed,
            "stage": step.stage,
            "set": UNLIKE if step.arm == UNLIKE else step.questions.name,
            "arm": step.name,
            "question": item.question,
        }

    def _left(self, steps: Mapping[int, Sequence[Step]]) -> str:
        """Say how long the rest will take, by what the rows of each arm took so far."""
        taken: dict[str, list[float]] = {}
        for row in self.journal.rows:
            if row.get("wall_s") is not None:
                taken.setdefault(row["arm"], []).append(row["wall_s"])
        seconds, unknown = 0.0, []
        for seed, of_seed in steps.items():
            for step in of_seed:
                items = [Item("", "")] if step.arm == NIGHT else step.questions.items
                left = sum(not self._has(seed, step, item) for item in items)
                if left and step.name not in taken:
                    unknown.append(step.name)
                elif left:
                    seconds += left * fmean(taken[step.name])
        but = f" and {', '.join(dict.fromkeys(unknown))}" if unknown else ""
        return f"; {duration(seconds)}{but} left" if seconds or not unknown else ""


def check_reason(reason: str, hint: str) -> None:
    """Say that steering failed, where the reason of an answer tells so: a plain answer is no result.

    Raises:
        CommandError: that is so; `hint` says what to do next.
    """
    if any(broken in reason for broken in BROKEN):
        raise CommandError(f"steering failed: {reason}", hint)


def duration(seconds: float) -> str:
    """Return a time to a unit that an estimate deserves."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under a minute"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def _spent(server: Server, before: int | None, questions: int = 1) -> int | None:
    """Return what was computed since, for each of some questions; None where the server does not tell."""
    now = server.spent
    return None if now is None or before is None else round((now - before) / questions)


def _item(text: str) -> Item:
    return Item(text, "")


def _day_row(lived: Lived, item: Item, scorer: Scorer) -> dict[str, Any]:
    row = {} if lived.reply is None else row_of(lived.reply, item, scorer)
    row["mode"] = lived.mode
    episode = lived.episode
    if episode is not None:
        row["remembered"] = {
            "episode": episode["id"],
            "reward": round(episode["reward"], 4),
            "signals": {name: round(value, 4) for name, value in episode["signals"].items()},
            "latent_earned": episode["latent_earned"],
            "start_lift": episode["start_lift"],
            "tokens": len(episode["answer_token_ids"]),
            "text": episode["answer_text"],
            "correct": scorer.correct(episode["answer_text"], item),
        }
    return row


def row_of(reply: Reply, item: Item, scorer: Scorer) -> dict[str, Any]:
    """Return what is kept of one answer."""
    row: dict[str, Any] = {
        "correct": scorer.correct(reply.text, item),
        "tokens": reply.tokens,
        "finished": reply.finished,
        "generated": reply.generated,
        "forward": reply.forward,
        "text": reply.text,
        **reply.facts,
    }
    if reply.samples:
        row["samples"] = [
            {
                "vote": sample.vote,
                "tokens": sample.tokens,
                "finished": sample.finished,
                "correct": scorer.correct(sample.text, item),
            }
            for sample in reply.samples
        ]
        row["any_correct"] = any(sample["correct"] for sample in row["samples"])
    return row
