"""A night's training on the real small model, with answers it chose itself."""

import asyncio
from pathlib import Path

import pytest
import torch

from memory.episode import Episode
from model.transformers_engine import TransformersEngine
from tests.worker.test_dataset import dataset
from worker.judge import judge
from worker.measure import same_norms
from worker.train import Recipe, Trained, train

pytestmark = pytest.mark.slow


def test_what_it_learns_is_proven_on_prompts_it_never_saw_and_a_spoilt_copy_is_not(
    real_engine: TransformersEngine, remembered: list[Episode], tmp_path: Path
) -> None:
    data = dataset(real_engine, remembered, tmp_path)
    first = data.folds[0]
    trained = asyncio.run(train(real_engine, data, first, Recipe(steps=20, batch=4)))
    spoilt = Trained(
        torch.stack([same_norms(z, torch.Generator().manual_seed(0)) for z in trained.latents]), 0, 0, (), 0
    )
    (good,) = asyncio.run(judge(real_engine, data, [(first, trained)], None, seed=0))
    (bad,) = asyncio.run(judge(real_engine, data, [(first, spoilt)], None, seed=0))
    assert {digest for digest, _ in good.differences} == {data.examples[at].digest for at in first.test}
    assert good.candidate is not None
    assert good.baseline is not None
    assert good.candidate > good.baseline + 0.2
    assert good.evidence.e_value > 2
    assert bad.evidence.e_value < 1.5
    assert bad.evidence.standing != "serves"
