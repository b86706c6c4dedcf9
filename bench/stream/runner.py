"""One run: seeds, days, nights and arms in their order.

Owns what is done next and what is skipped because its rows are there already. Knows nothing of how arms
answer or what reports look like.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from bench.stream.arms import ARMS, Reply
from bench.stream.journal import Journal
from bench.stream.loop import Loop
from bench.stream.plan import Plan
from bench.stream.questions import STREAM, Questions
from bench.stream.score import Scorer
from cli.demonstration.labels import labels_right
from cli.demonstration.stream import Item
from cli.failure import USAGE, CommandError
from server.steering.prompt import RenderedPrompt

CHUNK = 16
"""Questions of a day between two writes of rows; each is explored with several rollouts."""
JUDGED = 64
"""Held-out questions between two writes of rows."""
REFINED = 4
"""The same of arms that refine, which take minutes per question."""
START = "start"

Progress = Callable[[str, int, int, str], None]
"""Called with (phase, done, total, what is going on)."""
OpenLoop = Callable[[int], AbstractAsyncContextManager[Loop]]
"""Opens the loop of a seed."""


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
    open_loop: OpenLoop
    progress: Progress
    stage_ended: Callable[[], None]

    async def run(self, seeds: Sequence[int]) -> None:
        """Run all seeds, one after the other."""
        for seed in seeds:
            held_out, days, scorer = self.stream(seed)
            async with self.open_loop(seed) as loop:
                asked = chain(*(part.items for part in held_out), *days)
                _check_room(loop, chain(map(loop.render, asked), map(partial(_bare, loop), self.unlike)))
                await self._judge(loop, seed, START, held_out)
                for number, items in enumerate(days, start=1):
                    await self._day(loop, seed, f"day-{number}", items, scorer)
                    await self._night(loop, seed, f"night-{number}", list(chain(*days[:number])), scorer)
                    await self._judge(loop, seed, f"night-{number}", held_out)

    async def _day(self, loop: Loop, seed: int, stage: str, items: Sequence[Item], scorer: Scorer) -> None:
        todo = [item for item in items if not self.journal.has(seed, stage, "served", item.question)]
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            done = len(items) - len(todo) + start
            self.progress(stage, done, len(items), "answering and exploring")
            began = time.monotonic()
            outcomes = await loop.live(chunk, seed)
            wall_s = (time.monotonic() - began) / len(chunk)
            best = {item.question: episode for item, episode in loop.remembered(chunk)}
            rows = []
            for item, outcome in zip(chunk, outcomes, strict=True):
                row = {"seed": seed, "stage": stage, "set": STREAM, "arm": "served"}
                row |= {"question": item.question, "mode": outcome.mode, "wall_s": round(wall_s, 3)}
                episode = best.get(item.question)
                if episode is not None:
                    row["remembered"] = {
                        "reward": round(episode.reward, 4),
                        "signals": {name: round(value, 4) for name, value in episode.signals.items()},
                        "latent_earned": episode.latent_earned,
                        "start_lift": episode.start_lift,
                        "tokens": len(episode.answer_token_ids),
                        "text": episode.answer_text,
                        "correct": scorer.correct(episode.answer_text, item),
                    }
                rows.append(row)
            self.journal.add(rows)
        self.progress(stage, len(items), len(items), "")

    async def _night(self, loop: Loop, seed: int, stage: str, items: Sequence[Item], scorer: Scorer) -> None:
        if self.journal.has(seed, stage, "night", ""):
            return
        self.progress(stage, 0, 1, "consolidating")
        began = time.monotonic()
        record = await loop.night(
            stage,
            lambda found: self.progress(f"{stage} {found.phase}", found.done, found.total, found.message),
        )
        found = loop.remembered(items)
        known = {episode.id: item for item, episode in found}
        answers = {episode.id: episode.answer_text for _, episode in found}
        self.journal.add(
            [
                {
                    "seed": seed,
                    "stage": stage,
                    "arm": "night",
                    "question": "",
                    "wall_s": round(time.monotonic() - began, 1),
                    "state": record.state,
                    "message": record.error or record.message,
                    "episodes": record.episodes,
                    "version": record.version,
                    "evidence": record.evidence,
                    **labels_right(loop.labels(record), known, answers.__getitem__, scorer.correct),
                }
            ]
        )
        self.progress(stage, 1, 1, record.state)

    async def _judge(self, loop: Loop, seed: int, stage: str, held_out: Sequence[Questions]) -> None:
        for name in self.arms:
            arm = ARMS[name]
            if stage == START and arm.when == "nightly" and name != "random":
                continue
            if stage != START and arm.when == "once":
                continue
            for questions in held_out:
                items = questions.items[: self.plan.refined] if arm.refines else questions.items
                await self._answer(loop, seed, stage, name, questions, items)
        await self._unlike(loop, seed, stage)
        self.stage_ended()

    async def _answer(
        self,
        loop: Loop,
        seed: int,
        stage: str,
        name: str,
        questions: Questions,
        items: Sequence[Item],
    ) -> None:
        chunk_size = REFINED if ARMS[name].refines else JUDGED
        phase = f"{stage} {name}"
        arm = name if questions.name == STREAM else f"{name}@{questions.name}"
        todo = [item for item in items if not self.journal.has(seed, stage, arm, item.question)]
        for start in range(0, len(todo), chunk_size):
            chunk = todo[start : start + chunk_size]
            self.progress(phase, len(items) - len(todo) + start, len(items), questions.name)
            began = time.monotonic()
            replies = await ARMS[name].answer(loop, [loop.render(item) for item in chunk], seed)
            wall_s = (time.monotonic() - began) / len(chunk)
            self.journal.add(
                _row(seed, stage, questions, arm, item, reply, wall_s)
                for item, reply in zip(chunk, replies, strict=True)
            )
        if todo:
            self.progress(phase, len(items), len(items), questions.name)

    async def _unlike(self, loop: Loop, seed: int, stage: str) -> None:
        """Compare the answers of plain and `low` where nothing was learned."""
        todo = [text for text in self.unlike if not self.journal.has(seed, stage, "unlike", text)]
        if stage == START or not todo:
            return
        self.progress(f"{stage} unlike", 0, len(todo), "prompts unlike the stream")
        prompts = [_bare(loop, text) for text in todo]
        before = await ARMS["plain"].answer(loop, prompts, seed)
        after = await ARMS["low"].answer(loop, prompts, seed)
        self.journal.add(
            {
                "seed": seed,
                "stage": stage,
                "set": "unlike",
                "arm": "unlike",
                "question": text,
                "correct": one.text == other.text,
                **other.facts,
            }
            for text, one, other in zip(todo, before, after, strict=True)
        )


def _bare(loop: Loop, text: str) -> RenderedPrompt:
    return loop.render(Item(text, ""), instructed=False)


def _check_room(loop: Loop, prompts: Iterable[RenderedPrompt]) -> None:
    """Say before hours of work that a question is too long for its answer budget.

    Raises:
        CommandError: exit code 2, naming the first such question.
    """
    longest = loop.engine.max_model_len - loop.settings.latent_length - loop.plan.max_tokens
    for prompt in prompts:
        size = len(prompt.token_ids)
        if size > longest:
            raise CommandError(
                f"a question of {size} tokens leaves no room for {loop.plan.max_tokens} of an answer "
                f"in {loop.engine.max_model_len}: {prompt.question[:60]!r}",
                "raise --setting max_model_len=..., lower --max-tokens, or take the question out",
                USAGE,
            )


def _row(
    seed: int, stage: str, questions: Questions, arm: str, item: Item, reply: Reply, wall_s: float
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "seed": seed,
        "stage": stage,
        "set": questions.name,
        "arm": arm,
        "question": item.question,
        "correct": questions.scorer.correct(reply.text, item),
        "tokens": reply.tokens,
        "finished": reply.finished,
        "generated": reply.generated,
        "forward": reply.forward,
        "wall_s": round(wall_s, 3),
        "text": reply.text,
        **reply.facts,
    }
    if reply.samples:
        row["samples"] = [
            {
                "vote": sample.vote,
                "tokens": sample.tokens,
                "finished": sample.finished,
                "correct": questions.scorer.correct(sample.text, item),
            }
            for sample in reply.samples
        ]
        row["any_correct"] = any(sample["correct"] for sample in row["samples"])
    return row
