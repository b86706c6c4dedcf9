"""Training and gate on the real small model, with answers it chose itself."""

import asyncio

import pytest
import torch

from memory.episode import Episode
from memory.prior import PriorNetwork
from model.transformers_engine import TransformersEngine
from tests.worker.likelihood import mean_likelihood
from worker.contestants import Candidate, Recall
from worker.gate import judge
from worker.region import region
from worker.split import Split, split
from worker.training import Recipe, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real_sides(remembered: list[Episode]) -> Split:
    return split(remembered, holdout_share=0.25, seed=0)


@pytest.fixture(scope="module")
def candidate(real_engine: TransformersEngine, real_sides: Split) -> Candidate:
    length, hidden_size = real_engine.space.shape
    torch.manual_seed(0)
    network = PriorNetwork(hidden_size, length, base=real_engine.neutral_latent())
    recipe = Recipe("both", steps=15, batch=4)
    asyncio.run(train(real_engine, network, real_sides.train, real_sides.validation, recipe))
    return Candidate(network, region(real_sides.train, real_sides.holdout, 0))


def test_training_raises_the_likelihood_of_answers_it_never_saw(
    real_engine: TransformersEngine, real_sides: Split, candidate: Candidate
) -> None:
    untrained = PriorNetwork(576, 16, base=real_engine.neutral_latent())
    before = asyncio.run(mean_likelihood(real_engine, untrained, real_sides.holdout))
    after = asyncio.run(mean_likelihood(real_engine, candidate.network, real_sides.holdout))
    assert after > before + 0.5


def test_the_gate_lets_it_pass_and_a_spoilt_copy_not(
    real_engine: TransformersEngine, real_sides: Split, candidate: Candidate
) -> None:
    report = asyncio.run(judge(real_engine, candidate, None, real_sides, recall=Recall(), seed=0))
    assert report.promoted, report
    answers = next(row.answers for row in report.controls if row.control == "none")
    assert answers is not None
    assert answers.candidate > answers.mean
    spoilt = PriorNetwork(576, 16)
    with torch.no_grad():
        for weights, good in zip(spoilt.parameters(), candidate.network.parameters(), strict=True):
            weights.copy_(torch.randn_like(good) * good.std())
    bad = Candidate(spoilt, candidate.competence)
    assert not asyncio.run(judge(real_engine, bad, None, real_sides, recall=Recall(), seed=0)).promoted
