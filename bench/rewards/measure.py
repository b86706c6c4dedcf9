"""Answers of the bare model with every signal and label.

Owns what is decoded and scored for each question, and the row that is kept of it. Knows nothing of what
rows say together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.asking import first_seed, render, samples, vote
from bench.stream.journal import Journal
from bench.stream.questions import Scorer as Labels
from bench.stream.runner import Progress
from cli.demonstration.stream import Item
from cli.failure import CommandError
from model.engine import Engine, Generation, SteeredPrompt
from server.steering.prompt import RenderedPrompt
from server.steering.rewards.consistency import Consistency
from server.steering.rewards.scorer import Scored, Scorer

CHUNK = 8
"""Questions whose answers are decoded in one batch, and between two writes of rows."""
STAGE, ARM = "rewards", "bare"
"""What stands in every row: there is one way to answer."""


@dataclass(frozen=True)
class Measurement:
    """Samples, scores and labels; rows that the journal has are not made again.

    Args:
        scorer: The signals to measure; its weights are of no matter.
        count: Samples of each question, beside the greedy answer.
    """

    engine: Engine
    scorer: Scorer
    labels: Labels
    journal: Journal
    count: int
    seed: int
    max_tokens: int
    instruction: str = ""
    system: str = ""

    async def run(self, items: Sequence[Item], progress: Progress) -> list[dict[str, Any]]:
        """Return a row per question, in their order.

        Raises:
            CommandError: a signal cannot be had.
            EngineError: the engine failed.
        """
        todo = [(number, item) for number, item in enumerate(items) if not self._has(item)]
        for start in range(0, len(todo), CHUNK):
            progress("answers", len(items) - len(todo) + start, len(items), "")
            self.journal.add(await self._rows(todo[start : start + CHUNK]))
        progress("answers", len(items), len(items), "")
        rows = {row["question"]: row for row in self.journal.rows if row["seed"] == self.seed}
        return [rows[item.question] for item in items]

    def _has(self, item: Item) -> bool:
        return self.journal.has(self.seed, STAGE, ARM, item.question)

    async def _rows(self, chunk: Sequence[tuple[int, Item]]) -> list[dict[str, Any]]:
        prompts = [
            render(
                self.engine,
                item,
                instruction=self.instruction,
                system=self.system,
                max_tokens=self.max_tokens,
            )
            for _, item in chunk
        ]
        greedy = await self.engine.generate(
            [SteeredPrompt(prompt.token_ids) for prompt in prompts],
            [replace(prompt.decoding, logprobs=True) for prompt in prompts],
        )
        firsts = [first_seed(self.seed, number) for number, _ in chunk]
        pools = await samples(self.engine, prompts, self.count, firsts)
        rows = []
        for (_, item), prompt, best, pool in zip(chunk, prompts, greedy, pools, strict=True):
            answers = [best, *pool]
            scores = await self.scorer.score(prompt, answers, pool)
            if scores[0].unavailable:
                missing = ", ".join(scores[0].unavailable)
                raise CommandError(f"no scores of {missing}", "see the log above; the same command goes on")
            rows.append(self._row(item, prompt, answers, scores))
        return rows

    def _row(
        self, item: Item, prompt: RenderedPrompt, answers: Sequence[Generation], scores: Sequence[Scored]
    ) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "stage": STAGE,
            "arm": ARM,
            "question": item.question,
            "expected": item.answer,
            "answers": [
                {
                    "text": answer.text,
                    "tokens": len(answer.token_ids),
                    "vote": vote(prompt, answer),
                    "correct": self.labels.correct(answer.text, item),
                    "signals": {name: round(value, 6) for name, value in scored.signals.items()},
                }
                for answer, scored in zip(answers, scores, strict=True)
            ],
            "spent": self._spent(prompt, answers),
        }

    def _spent(self, prompt: RenderedPrompt, answers: Sequence[Generation]) -> dict[str, dict[str, int]]:
        """Return by signal what scoring all these answers took.

        Consistency is what its voters cost, the samples; their prompt counts once.
        """
        found = {}
        for reward, _ in self.scorer.rewards:
            generated = read = 0
            if reward.name == Consistency.name:
                generated = sum(len(answer.token_ids) for answer in answers[1:])
                read = len(prompt.token_ids)
            found[reward.name] = {"generated": generated, "forward": generated + read}
        return found
