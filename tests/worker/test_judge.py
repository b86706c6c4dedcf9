"""What a trained table is compared with, and where its rows may speak."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memory.prior import Prior
from model.engine import Generation, SteeredPrompt
from tests.scripted_engine import ScriptedEngine
from tests.tables import row
from tests.worker.conftest import scripted_episodes
from tests.worker.test_dataset import dataset
from worker.dataset import Dataset, Fold
from worker.judge import MOST_JUDGING, judge, rows
from worker.train import Trained


@pytest.fixture
def data(engine: ScriptedEngine, tmp_path: Path) -> Dataset:
    return dataset(engine, scripted_episodes(engine, 48), tmp_path)


def table(engine: ScriptedEngine, data: Dataset, part: float = 1.0) -> Trained:
    """Return latents that go `part` of the way to the best ones of each cluster."""
    neutral = engine.neutral_latent()
    found = []
    for cluster in range(data.clusters):
        prompt = data.examples[data.of(cluster, range(len(data.examples)))[0]].prompt
        found.append(torch.lerp(neutral, engine.best_latent(prompt), part))
    return Trained(torch.stack(found), 1, 1, (), 0)


def judged(
    engine: ScriptedEngine, data: Dataset, serving: Prior | None = None, *, part: float = 1.0
) -> list[tuple[float, float, int]]:
    """Return (candidate, baseline, differences) of each cluster."""
    made = table(engine, data, part)
    found = asyncio.run(judge(engine, data, [(fold, made) for fold in data.folds], serving, seed=0))
    return [(one.candidate or 0.0, one.baseline or 0.0, len(one.differences)) for one in found]


def prior_of(engine: ScriptedEngine, data: Dataset, part: float, learned: dict[str, list[str]]) -> Prior:
    made, _ = rows(data, table(engine, data, part), None, seed=0)
    named = [
        row(one.latent, one.coverage.centroids, float(one.coverage.thresholds[0]), id=f"v1/{at}")
        for at, one in enumerate(made)
    ]
    return Prior("v1", engine.space.id, tuple(named), {"learned": learned})


def test_every_prompt_is_judged_once_by_a_training_that_has_not_seen_it(
    engine: ScriptedEngine, data: Dataset
) -> None:
    found = judged(engine, data)
    assert [count for _, _, count in found] == [16, 16, 16]
    for candidate, baseline, _ in found:
        assert candidate > 0.8
        assert baseline < 0.3


def test_with_nothing_serving_the_baseline_is_no_latent(data: Dataset) -> None:
    class Noting(ScriptedEngine):
        async def generate(
            self, prompts: Sequence[SteeredPrompt], decoding: Any, **named: Any
        ) -> list[Generation]:
            steered.append({prompt.latent is not None for prompt in prompts})
            return await super().generate(prompts, decoding, **named)  # type: ignore[arg-type]

    steered: list[set[bool]] = []
    judged(Noting(), data)
    assert {False} in steered


def test_what_serves_is_the_baseline_where_it_speaks(engine: ScriptedEngine, data: Dataset) -> None:
    serving = prior_of(engine, data, 1.0, {}).only({"v1/0"})
    (first, *others) = judged(engine, data, serving)
    assert first[1] > 0.8
    assert all(baseline < 0.3 for _, baseline, _ in others)


def test_prompts_that_the_baseline_has_learned_by_heart_judge_nothing(
    engine: ScriptedEngine, data: Dataset
) -> None:
    numbers = data.of(0, range(len(data.examples)))
    known = [data.examples[at].digest for at in numbers[:10]]
    serving = prior_of(engine, data, 1.0, {"0": known})
    counts = [count for _, _, count in judged(engine, data, serving)]
    assert counts == [len(numbers) - 10, 16, 16]


def test_no_more_than_some_prompts_judge_and_each_group_in_turn(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    data = dataset(engine, scripted_episodes(engine, 480), tmp_path)
    (fold,) = data.folds
    assert len(fold.test) > MOST_JUDGING
    assert [count for _, _, count in judged(engine, data)] == [MOST_JUDGING // 3] * 3, (
        "each cluster has a part"
    )


def test_rows_speak_for_all_of_their_cluster_and_for_no_other(engine: ScriptedEngine, data: Dataset) -> None:
    made, floor = rows(data, table(engine, data), None, seed=0)
    assert len(made) == data.clusters
    for cluster, one in enumerate(made):
        assert np.array_equal(one.latent, table(engine, data).latents[cluster].numpy())
        assert one.baseline is None
        inside = [one.coverage.covers(example.key) for example in data.examples if example.cluster == cluster]
        outside = [
            one.coverage.covers(example.key) for example in data.examples if example.cluster != cluster
        ]
        assert all(inside)
        assert not any(outside)
    assert 0.5 <= floor < 1


def test_rows_name_what_served_when_they_were_made(engine: ScriptedEngine, data: Dataset) -> None:
    serving = prior_of(engine, data, 0.5, {})
    made, _ = rows(data, table(engine, data), serving, seed=0)
    assert [one.baseline for one in made] == ["v1/0", "v1/1", "v1/2"]


def test_a_fold_without_test_prompts_judges_nothing(engine: ScriptedEngine, data: Dataset) -> None:
    made = table(engine, data)
    everything = Fold("all", tuple(range(len(data.examples))), ())
    for one in asyncio.run(judge(engine, data, [(everything, made)], None, seed=0)):
        assert one.differences == ()
        assert (one.candidate, one.baseline) == (None, None)
        assert one.random is not None
        assert one.evidence.standing == "on trial"
