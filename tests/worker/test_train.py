"""Training on the scripted engine, whose best latents are known."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.settings import Settings
from model.engine import Label, LatentGradient
from tests.memory.full_disk import Disk
from tests.scripted_engine import ScriptedEngine
from tests.worker.choosing import ChoosingEngine
from tests.worker.conftest import scripted_episodes
from tests.worker.test_dataset import choosing_episodes, dataset
from worker.checkpoint import Counters
from worker.dataset import Dataset
from worker.errors import TrainingDivergedError
from worker.measure import outcomes
from worker.train import MAX_WATCHED, LatentTable, Recipe, Trained, _note, train

RECIPE = Recipe(steps=30, batch=4)


@pytest.fixture
def data(engine: ScriptedEngine, tmp_path: Path) -> Dataset:
    return dataset(engine, scripted_episodes(engine), tmp_path)


def trained(
    engine: ScriptedEngine, data: Dataset, recipe: Recipe = RECIPE, fold: int = -1, **options: Any
) -> Trained:
    return asyncio.run(train(engine, data, data.folds[fold], recipe, **options))


def worth(engine: ScriptedEngine, data: Dataset, found: Trained, fold: int) -> float:
    """Mean outcome of a fold's test prompts."""
    examples = [data.examples[at] for at in data.folds[fold].test]
    latents = [found.latents[example.cluster] for example in examples]
    return float(asyncio.run(outcomes(engine, examples, latents)).mean())


def same(one: Trained, other: Trained) -> bool:
    return (one.steps, one.best_step, one.looks) == (
        other.steps,
        other.best_step,
        other.looks,
    ) and torch.equal(one.latents, other.latents)


class Interrupted(ScriptedEngine):
    """Dies after some gradients, as a worker does that is killed."""

    gradients_left = 13

    async def latent_gradient(self, *arguments: Any, **named: Any) -> LatentGradient:
        self.gradients_left -= 1
        if self.gradients_left < 0:
            raise KeyboardInterrupt
        return await super().latent_gradient(*arguments, **named)


class Unsteady(ScriptedEngine):
    """Gives NaN for the gradients of these calls."""

    calls_with_nan: range = range(0)
    gradient_calls = 0

    async def latent_gradient(self, *arguments: Any, **named: Any) -> LatentGradient:
        found = await super().latent_gradient(*arguments, **named)
        self.gradient_calls += 1
        if self.gradient_calls - 1 in self.calls_with_nan:
            return replace(found, gradient=found.gradient * math.nan)
        return found


def test_training_makes_unseen_prompts_of_every_cluster_answered_well(
    engine: ScriptedEngine, data: Dataset
) -> None:
    found = trained(engine, data, fold=0)
    assert worth(engine, data, replace(found, latents=engine.neutral_latent().expand(3, -1, -1)), 0) < 0.3
    assert worth(engine, data, found, 0) > 0.8


def test_what_is_published_is_one_latent_per_cluster(engine: ScriptedEngine, data: Dataset) -> None:
    found = trained(engine, data)
    assert found.latents.shape == (data.clusters, *engine.space.shape)
    assert not torch.allclose(found.latents[0], found.latents[1])


def test_an_untrained_table_gives_its_start_to_every_key_of_every_cluster(engine: ScriptedEngine) -> None:
    start = engine.neutral_latent()
    table = LatentTable(start, 3)
    keys = torch.randn(5, start.shape[1])
    assert torch.equal(table(keys, torch.tensor([0, 1, 2, 0, 1])), start.expand(5, -1, -1))
    assert torch.equal(table.table(keys[:3]), start.expand(3, -1, -1))


def test_each_step_asks_once_for_each_prompt_and_all_of_its_label(tmp_path: Path) -> None:
    asked: list[tuple[Label, float]] = []

    class Noting(ChoosingEngine):
        async def latent_gradient(self, *arguments: Any, **named: Any) -> LatentGradient:
            asked.extend(zip(arguments[1], arguments[2], strict=True))
            return await super().latent_gradient(*arguments, **named)

    engine = Noting()
    beliefs = np.random.default_rng(1).dirichlet([0.4] * 4, 24).tolist()
    data = dataset(engine, choosing_episodes(engine, beliefs), tmp_path)
    trained(engine, data, replace(RECIPE, steps=1))
    assert len(asked) == RECIPE.batch
    known = {example.label: example.weight for example in data.examples}
    assert all(known[label] == weight for label, weight in asked)


@pytest.mark.parametrize(
    ("batch", "size", "steps"),
    [(4, 12, 36), (4, 16, 48), (4, 17, 50), (4, 1000, 50), (8, 9, 13), (32, 9, 12), (4, 2, 12)],
)
def test_a_training_sees_each_example_twelve_times_at_most(batch: int, size: int, steps: int) -> None:
    settings = Settings(night_steps=50, night_batch=batch, _env_file=None)
    recipe = Recipe.of(settings, size)
    assert recipe.steps == steps
    assert recipe.steps * min(batch, size) <= 12 * size


def test_training_is_reproducible(engine: ScriptedEngine, data: Dataset) -> None:
    assert same(trained(engine, data), trained(engine, data))


def test_resumed_training_equals_an_uninterrupted_one(
    engine: ScriptedEngine, data: Dataset, tmp_path: Path
) -> None:
    uninterrupted = trained(engine, data)
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(Interrupted(), data, checkpoint=checkpoint)
    again = trained(engine, data, checkpoint=checkpoint)
    assert again.resumed_at == 10
    assert same(again, uninterrupted)


def test_training_goes_on_without_a_checkpoint_where_there_is_no_room(
    engine: ScriptedEngine, data: Dataset, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    whole = trained(engine, data, checkpoint=checkpoint, room=Disk(free_mib=99))
    assert whole.steps == RECIPE.steps
    assert not checkpoint.exists()
    trained(engine, data, checkpoint=checkpoint, room=Disk(free_mib=100))
    assert checkpoint.exists()


def test_finished_training_is_not_repeated(engine: ScriptedEngine, data: Dataset, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = trained(engine, data, checkpoint=checkpoint)
    engine.calls.clear()
    assert same(trained(engine, data, checkpoint=checkpoint), first)
    assert not engine.calls


def test_checkpoint_of_another_training_is_not_used(
    engine: ScriptedEngine, data: Dataset, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    trained(engine, data, checkpoint=checkpoint)
    assert trained(engine, data, replace(RECIPE, seed=1), checkpoint=checkpoint).resumed_at == 0
    assert trained(engine, data, fold=0, checkpoint=checkpoint).resumed_at == 0
    checkpoint.write_bytes(b"\x00" * 100)
    assert trained(engine, data, checkpoint=checkpoint).resumed_at == 0


def test_a_gradient_that_is_not_finite_is_left_out(data: Dataset) -> None:
    engine = Unsteady()
    engine.calls_with_nan = range(2, 4)
    assert worth(engine, data, trained(engine, data, fold=0), 0) > 0.8


def test_gradients_that_stay_not_finite_end_the_training(data: Dataset) -> None:
    engine = Unsteady()
    engine.calls_with_nan = range(2, 99)
    with pytest.raises(TrainingDivergedError, match="not finite"):
        trained(engine, data)


def test_latents_with_the_best_outcome_are_kept_of_equals_the_latest() -> None:
    counters, worth = Counters(""), []
    for step, values in enumerate(([0, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0])):
        counters.step = 5 * step + 1
        worth.append(_note(counters, np.array(values, dtype=float)))
    assert worth == [True, True, True, False, True]
    assert [look.outcome for look in counters.looks] == [0.25, 0.5, 0.5, 0.25, 0.75]


def test_latents_that_are_not_finite_are_never_kept() -> None:
    counters = Counters("")
    assert not _note(counters, None)
    assert counters.looks[0].outcome is None
    assert counters.looks[0].text == "not finite"
    assert _note(counters, np.zeros(4))


@pytest.mark.parametrize(("fall", "stale"), [((3.0, 0.0, 3.0, 0.0), 0), ((2.0, 1.0, 2.0, 1.0), 1)])
def test_clearly_worse_is_two_standard_errors(fall: tuple[float, ...], stale: int) -> None:
    """Both fall by 1.5 on average: that is 1.7 standard errors of the first, 5.2 of the second."""
    counters = Counters("")
    assert _note(counters, np.zeros(4))
    assert not _note(counters, -np.array(fall))
    assert counters.stale == stale


def test_a_training_whose_answers_agree_clearly_less_for_long_ends(tmp_path: Path) -> None:
    class Contrary(ScriptedEngine):
        """After some time pushes latents away from what is asked for."""

        calls_that_help = 20

        async def latent_gradient(self, *arguments: Any, **named: Any) -> LatentGradient:
            found = await super().latent_gradient(*arguments, **named)
            self.calls_that_help -= 1
            return found if self.calls_that_help >= 0 else replace(found, gradient=-found.gradient)

    engine = Contrary()
    episodes = [one for one in scripted_episodes(engine, 90) if "sums" in one.prompt_text]
    data = dataset(engine, episodes, tmp_path)
    found = trained(engine, data, Recipe(steps=200, batch=4))
    best = max(look.outcome or 0 for look in found.looks)
    assert best > 0.9
    assert found.steps < 200
    assert max(look.outcome or 0 for look in found.looks[-4:]) < 0.5
    watched = [data.examples[at] for at in data.folds[-1].train]
    kept = asyncio.run(outcomes(engine, watched, [found.latents[0]] * len(watched)))
    assert kept.mean() == pytest.approx(best, abs=0.1)


def test_long_trainings_are_looked_at_as_often_as_short_ones() -> None:
    for steps, looks in ((6, [0, 6]), (25, [0, 10, 20, 25]), (1000, list(range(0, 1001, 100)))):
        recipe = replace(RECIPE, steps=steps)
        assert [step for step in range(steps + 1) if recipe.looks_at(step)] == looks


def test_each_cluster_is_watched_in_turn_and_its_newest_prompts(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    episodes = scripted_episodes(engine, 90)
    data = dataset(engine, episodes, tmp_path)
    engine.calls.clear()
    trained(engine, data, replace(RECIPE, steps=1))
    first, second = (call.prompts for call in engine.calls if call.method == "generate")
    assert first == second
    assert len(first) == MAX_WATCHED
    newest = {one.prompt_token_ids for one in sorted(episodes, key=lambda one: one.created_at)[-33:]}
    assert set(first) <= newest
    shares = [sum(engine.topic(prompt) == topic for prompt in first) for topic in ("sums", "poems", "news")]
    assert sorted(shares) == [10, 11, 11]


def test_progress_reaches_its_end(engine: ScriptedEngine, data: Dataset) -> None:
    seen: list[tuple[int, int]] = []
    found = trained(engine, data, progress=lambda done, total, _: seen.append((done, total)))
    assert seen[0] == (0, RECIPE.steps)
    assert seen[-1] == (found.steps, RECIPE.steps)
