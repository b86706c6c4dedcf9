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


class Clock:
    """A reward that costs nothing, notes when it was asked, and finds every answer better than the last.

    So no step is cut short: rewards always differ, and there is always something left to gain.
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
        """Return rising rewards below 1."""
        now = time.perf_counter()
        self.asked.append((now, len(answers), sum(len(answer.token_ids) for answer in answers)))
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
    """Take one step with a refiner from the neutral latent.

    The clock runs from the scores of the unsteered answer and the start, with which refining opens, to the
    scores of the step's last answers.
    """
    clock = Clock()
    refiner = make(engine, Scorer([(clock, 1.0)]))
    limits = Limits(
        steps=1, population=population, max_tokens=prompt.decoding.max_tokens, seed=seed, deadline_s=86_400.0
    )
    await refiner.refine(prompt, engine.neutral_latent(), engine.position(prompt.token_ids), limits)
    (opened, _, _), *batches = clock.asked
    return Step(
        seconds=batches[-1][0] - opened,
        answers=sum(answers for _, answers, _ in batches),
        tokens=sum(tokens for _, _, tokens in batches),
    )


def prompt_of(engine: Engine, question: str, answer_tokens: int) -> RenderedPrompt:
    """Return a question as the server would hand it to a refiner."""
    tokens = engine.render([{"role": "user", "content": question}])
    return RenderedPrompt(tokens, engine.decode(tokens), question, Decoding(max_tokens=answer_tokens))
