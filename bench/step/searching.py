"""One optimisation step of our searches.

Owns the reward that times them. The searches are those of the server, on the transformers engine.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from model.engine import Decoding, Engine, Generation
from server.steering.prompt import Options, RenderedPrompt
from server.steering.rewards.scorer import Scorer
from server.steering.search.result import Search
from server.steering.search.session import Session

BATCHES = 3
"""The opening, the answers that the first step is made from or of, and those of one full step."""


class Clock:
    """A reward that costs nothing, notes when it was asked, and finds every answer better than the last.

    So no step is cut short: rewards always differ, and there is something left to gain, until the batch that
    ends the measurement, whose answers are all perfect.
    """

    name = "clock"

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


async def search_step(
    search: Search, engine: Engine, prompt: RenderedPrompt, population: int, seed: int
) -> Step:
    """Take one step with a search on its way from the neutral latent.

    The clock runs from one batch of answers to the next, between which there is one update: `gradient` goes
    from the rollouts of one latent to those of the next one and the answer that judges it, `evolution` from
    one generation to the next.
    """
    clock = Clock()
    options = Options(
        effort="high",
        effort_source="default",
        given=frozenset(),
        search=search.name,
        recalls=False,
        k=1,
        floor=None,
        steps=2,
        votes=population,
        population=population,
        answer_tokens=prompt.decoding.max_tokens,
        vote_tokens=0,
        budget_tokens=None,
        deadline_s=86_400.0,
        prior=None,
        store=False,
        explore=False,
        seed=seed,
    )
    scorer, start, position = (
        Scorer([(clock, 1.0)]),
        engine.neutral_latent(),
        engine.position(prompt.token_ids),
    )
    await Session(engine, scorer, prompt, start, position, options, served=None).run(search)
    _, (before, _, _), (after, answers, tokens) = clock.asked
    return Step(seconds=after - before, answers=answers, tokens=tokens)


def prompt_of(engine: Engine, question: str, answer_tokens: int) -> RenderedPrompt:
    """Return a question as the server would hand it to a search."""
    tokens = engine.render([{"role": "user", "content": question}])
    return RenderedPrompt(tokens, engine.decode(tokens), question, Decoding(max_tokens=answer_tokens))
