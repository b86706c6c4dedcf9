"""One optimisation step of our refiners.

Owns the reward that times them. The refiners are those of the server, on the transformers engine.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.engine import Decoding, Engine, Generation
from server.steering.call import RenderedPrompt
from server.steering.refiners.refiner import Limits, Refiner
from server.steering.rewards.scorer import Scorer

BATCHES = 3
"""The opening, the answers that the first step is made from or of, and those of one full step."""


class Clock:
    """A reward that costs nothing, notes when it was asked, and finds every answer better than the last.

    So no step is cut short: rewards always differ, and there is something left to gain, until the batch that
    ends the measurement, whose answers are all perfect.
    """

    name = "clock"
    tokens_per_answer = 0

    def __init__(self) -> None:
        self.asked: list[tuple[float, int, int]] = []
        """Of each batch: the time, how many answers it had, and their tokens."""
        self._seen = 0

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        """Return rising rewards below 1, and 1 for the last batch."""
        now = time.perf_counter()
        self.asked.append((now, len(answers), sum(len(answer.token_ids) for answer in answers)))
        if len(self.asked) == BATCHES:
            return [1.0] * len(answers)
        first, self._seen = self._seen + 1, self._seen + len(answers)
        return [1 - 1 / (1 + number) for number in range(first, self._seen + 1)]


@dataclass(frozen=True)
class Step:
    """What one step took."""

    seconds: float
    answers: int
    """Answers that were decoded."""
    tokens: int
    """Tokens of them."""


async def refining_step(
    make: Callable[[Engine, Scorer], Refiner],
    engine: Engine,
    prompt: RenderedPrompt,
    population: int,
    seed: int,
) -> Step:
    """Take one step with a refiner on its way from the neutral latent.

    The clock runs from one batch of answers to the next, between which there is one update: `gradient` goes
    from the rollouts of one latent to those of the next one and the answer that judges it, `evolution` from
    one generation to the next.
    """
    clock = Clock()
    refiner = make(engine, Scorer([(clock, 1.0)]))
    limits = Limits(
        steps=2,
        votes=population,
        population=population,
        max_tokens=prompt.decoding.max_tokens,
        seed=seed,
        deadline_s=86_400.0,
    )
    await refiner.refine(prompt, engine.neutral_latent(), engine.position(prompt.token_ids), limits)
    _, (before, _, _), (after, answers, tokens) = clock.asked
    return Step(seconds=after - before, answers=answers, tokens=tokens)


def prompt_of(engine: Engine, question: str, answer_tokens: int) -> RenderedPrompt:
    """Return a question as the server would hand it to a refiner."""
    tokens = engine.render([{"role": "user", "content": question}])
    return RenderedPrompt(tokens, engine.decode(tokens), question, Decoding(max_tokens=answer_tokens))
