"""What rows are worth on one prompt: who votes, who is graded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from memory.prior import Row
from model.engine import Decoding, Generation, SteeredPrompt
from server.steering.active_prior import Comparison
from server.steering.measure import SAMPLES, Measured, measure
from server.steering.prompt import RenderedPrompt
from server.steering.rewards.reward import SignalUnavailableError
from tests.scripted_engine import ScriptedEngine
from tests.server.steering.fakes import answer, rendered
from tests.tables import row

GRADED = 1 + SAMPLES

Says = dict[str | None, Any]
"""What a row, by its id, or no latent answers: a text, or a function of the decoding."""


class Model(ScriptedEngine):
    """Answers as told, and keeps what it was asked."""

    def __init__(self, says: Says) -> None:
        super().__init__(answer=self._say)
        self.says = says
        self.asked: list[tuple[str | None, Decoding]] = []

    def _say(self, prompt: str, latent: torch.Tensor | None, decoding: Decoding) -> str:
        side = None if latent is None else f"v{int(latent[0, 0])}/0"
        self.asked.append((side, decoding))
        said = self.says[side]
        return str(said(decoding) if callable(said) else said)

    def made(self, number: int) -> Row:
        """Return the row that this model knows as v`number`/0."""
        latent = np.full(self.space.shape, number, np.float32)
        return row(latent, np.eye(self.space.hidden_size, dtype=np.float32)[:1], id=f"v{number}/0")

    async def measure(
        self,
        *comparisons: Comparison,
        prompt: RenderedPrompt | None = None,
        verifier: Any = None,
        given: dict[str | None, Sequence[Generation]] | None = None,
    ) -> Measured:
        prompt = prompt or rendered(self)
        position = self.position(prompt.token_ids)
        return await measure(
            self, verifier, prompt, position, comparisons, given or {}, max_tokens=32, seed=100
        )


def sometimes(often: str, seldom: str) -> Any:
    """Say one thing greedily and in three samples of four, another in the fourth."""
    return lambda decoding: seldom if decoding.seed is not None and decoding.seed % 4 == 0 else often


async def test_difference_is_between_shares_of_answers_that_agree_with_the_consensus() -> None:
    model = Model({None: sometimes("it is 4", "it is 5"), "v1/0": "4"})
    found = await model.measure(Comparison(model.made(1), None))
    assert found.differences == {"v1/0": pytest.approx(1.0 - 4 / 5)}


async def test_row_that_collapsed_onto_one_wrong_answer_loses() -> None:
    """However many of its own answers agree with each other."""
    model = Model({None: sometimes("4", "5"), "v1/0": "6"})
    found = await model.measure(Comparison(model.made(1), None))
    assert found.differences == {"v1/0": pytest.approx(-4 / 5)}


async def test_no_answer_is_graded_that_votes_and_none_has_the_luck_of_a_vote() -> None:
    """Every sample says its seed, so that whoever agrees with the consensus has the seed of a vote."""
    model = Model({None: lambda decoding: decoding.seed or 0, "v1/0": lambda decoding: decoding.seed or 0})
    found = await model.measure(Comparison(model.made(1), None))
    assert found.differences == {}  # no two votes agree
    seeds = {side: [d.seed for asked, d in model.asked if asked == side and d.seed] for side in model.says}
    votes = [seed for seed in seeds[None] if seed not in seeds["v1/0"]]
    assert (len(seeds[None]), len(votes), len(seeds["v1/0"])) == (2 * SAMPLES, SAMPLES, SAMPLES)


async def test_baseline_votes_and_the_row_never_does() -> None:
    """Plain samples alone agree on nothing; those of the baseline tip the scales."""
    model = Model({None: lambda decoding: (decoding.seed or 0) % 4, "v1/0": "2", "v2/0": "3"})
    one, other = model.made(1), model.made(2)
    assert (await model.measure(Comparison(one, None))).differences == {}
    found = await model.measure(Comparison(other, one), Comparison(one, None))
    assert found.differences == {"v2/0": -1.0}


async def test_where_the_vote_is_tied_there_is_no_label() -> None:
    model = Model({None: lambda decoding: (decoding.seed or 0) % 2, "v1/0": "1"})
    assert (await model.measure(Comparison(model.made(1), None))).differences == {}


async def test_answers_that_the_request_could_not_have_been_given_are_worth_nothing() -> None:
    long = "After a long while of thinking, so it is 4"
    model = Model({None: "it is 4", "v1/0": long})
    assert len(long) > 32
    assert (await model.measure(Comparison(model.made(1), None))).differences == {"v1/0": -1.0}
    votes = [answer(long) for _ in range(GRADED)]  # a vote may think longer, its answer does not count
    found = await model.measure(Comparison(model.made(1), None), given={None: votes + votes})
    assert found.differences == {"v1/0": 0.0}
    boxed = rendered(model, rules={"boxed": True})
    model = Model({None: "\\boxed{4}", "v1/0": "4"})
    assert (await model.measure(Comparison(model.made(1), None), prompt=boxed)).differences == {"v1/0": -1.0}


async def test_answers_that_there_are_already_are_not_sampled_again() -> None:
    model = Model({None: "4", "v1/0": "4"})
    plain = [answer("4") for _ in range(1 + 2 * SAMPLES)]
    found = await model.measure(Comparison(model.made(1), None), given={None: plain})
    assert Counter(side for side, _ in model.asked) == {"v1/0": GRADED}
    assert found.generated_tokens == GRADED * 2  # and the end of each
    model.asked.clear()
    steered = [answer("4") for _ in range(GRADED)]
    found = await model.measure(
        Comparison(model.made(1), None), given={None: plain[:GRADED], "v1/0": steered}
    )
    assert Counter(side for side, _ in model.asked) == {None: SAMPLES}
    assert found.differences == {"v1/0": 0.0}


class Likes:
    """A verifier that likes one answer."""

    name = "verifier"

    def __init__(self, liked: str, *, away: bool = False, silent_on: str = "") -> None:
        self.liked, self.away, self.silent_on = liked, away, silent_on

    async def score(
        self, prompt: RenderedPrompt, answers: Sequence[Generation], pool: Sequence[Generation]
    ) -> list[float | None]:
        if self.away:
            raise SignalUnavailableError(self.name)
        return [
            None if given.text == self.silent_on else float(given.text == self.liked) for given in answers
        ]


async def test_verifiers_word_counts_and_not_the_consensus() -> None:
    model = Model({None: "4", "v1/0": "6"})
    one = Comparison(model.made(1), None)
    assert (await model.measure(one)).differences == {"v1/0": -1.0}
    assert (await model.measure(one, verifier=Likes("6"))).differences == {"v1/0": 1.0}


@pytest.mark.parametrize("verifier", [Likes("6", away=True), Likes("6", silent_on="4")])
async def test_verifier_that_does_not_judge_every_answer_leaves_it_to_the_consensus(verifier: Likes) -> None:
    model = Model({None: "4", "v1/0": "6"})
    found = await model.measure(Comparison(model.made(1), None), verifier=verifier)
    assert found.differences == {"v1/0": -1.0}


async def test_choices_are_labelled_by_what_the_model_thinks_less_what_it_leans_to() -> None:
    """A vote would say `no`, for the plain model says so to everything."""

    class Leaning(Model):
        async def choice_log_probabilities(
            self, prompts: Sequence[SteeredPrompt], choices: Any, *, held: bool
        ) -> Any:
            believes = {None: (0.3, 0.7), 1: (0.8, 0.2), 2: (0.1, 0.9)}
            sides = [None if prompt.latent is None else int(prompt.latent[0, 0]) for prompt in prompts]
            return torch.tensor([believes[side] for side in sides]).log()

    model = Leaning({None: "no"})
    held = rendered(model, choices=("yes", "no"))
    # It says `no` nine times of ten, so that three in ten for `yes` means yes.
    leanings = {("yes", "no"): (float(np.log(0.1 / 0.5)), float(np.log(0.9 / 0.5)))}
    good, bad = (replace(model.made(number), leanings=leanings) for number in (1, 2))
    found = await model.measure(Comparison(good, None), Comparison(bad, good), prompt=held)
    assert found.differences == {"v1/0": 1.0, "v2/0": -1.0}
    assert model.asked == []
    assert found.generated_tokens == 0


async def test_choices_that_nothing_tells_apart_measure_nothing() -> None:
    class Unsure(Model):
        async def choice_log_probabilities(
            self, prompts: Sequence[SteeredPrompt], choices: Any, *, held: bool
        ) -> Any:
            return torch.full((len(prompts), 2), float(np.log(0.5)))

    model = Unsure({None: "no"})
    held = rendered(model, choices=("yes", "no"))
    row = replace(model.made(1), leanings={("yes", "no"): (0.0, 0.0)})
    assert (await model.measure(Comparison(row, None), prompt=held)).differences == {}
