"""Training on the scripted engine, whose best latents are known."""

import asyncio
import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.settings import Settings
from memory.prior import PriorNetwork, kind_means
from model.engine import Generation, LatentGradient, UnsupportedError
from model.scripted_engine import CLOSE, POOR, ScriptedEngine
from tests.memory.full_disk import Disk
from tests.worker.conftest import scripted_episodes
from tests.worker.likelihood import mean_likelihood
from worker.checkpoint import Counters
from worker.errors import TrainingDivergedError
from worker.neighbourhood import stack_keys
from worker.split import Split, split
from worker.training import MAX_WATCHED, Recipe, Trained, _Look, _note, _watched, episode_weights, train

RECIPE = Recipe(objective="replay", steps=30, batch=4)


def fresh(engine: ScriptedEngine) -> PriorNetwork:
    length, hidden_size = engine.space.shape
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PriorNetwork(hidden_size, length, rank=8, base=engine.neutral_latent())


def sides_of(engine: ScriptedEngine) -> Split:
    return split(scripted_episodes(engine), holdout_share=0.25, seed=0)


def trained(
    engine: ScriptedEngine, sides: Split, network: PriorNetwork, recipe: Recipe = RECIPE, **options: Any
) -> Trained:
    return asyncio.run(train(engine, network, sides.train, sides.validation, recipe, **options))


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


class Mute(ScriptedEngine):
    """Does not generate: likelihood alone tells what training is worth."""

    async def generate(self, *arguments: Any, **named: Any) -> list[Generation]:
        raise UnsupportedError("mute")


def look(likelihoods: Sequence[float], agreement: Sequence[float] | None = None) -> _Look:
    return _Look(
        torch.tensor(likelihoods), None if agreement is None else torch.tensor(agreement, dtype=torch.float64)
    )


@pytest.mark.parametrize("objective", ["replay", "regress", "both"])
def test_training_raises_the_likelihood_of_unseen_answers(engine: ScriptedEngine, objective: Any) -> None:
    sides, network = sides_of(engine), fresh(engine)
    before = asyncio.run(mean_likelihood(engine, network, sides.holdout))
    trained(engine, sides, network, replace(RECIPE, objective=objective))
    after = asyncio.run(mean_likelihood(engine, network, sides.holdout))
    assert before < -3
    assert after > -0.5


def test_rate_of_a_prior_that_was_trained_before_rises_to_a_quarter_and_falls_to_nothing() -> None:
    assert {Recipe("both", 50, 4, 0.01).rate(step) for step in range(50)} == {0.01}
    recipe = Recipe("both", 50, 4, 0.01, goes_on=True)
    rates = [recipe.rate(step) for step in range(50)]
    assert rates[:5] == pytest.approx([0.0005, 0.001, 0.0015, 0.002, 0.0025])
    assert all(later < earlier for earlier, later in pairwise(rates[5:]))
    assert rates[49] < 1e-4
    assert [Recipe("both", 2, 4, 0.01, goes_on=True).rate(step) for step in (0, 1)] == [0.00125, 0.0025]


@pytest.mark.parametrize(
    ("batch", "size", "steps"),
    [(4, 12, 36), (4, 16, 48), (4, 17, 50), (4, 1000, 50), (8, 9, 13), (32, 9, 12), (4, 2, 12)],
)
def test_night_sees_each_episode_twelve_times_at_most(batch: int, size: int, steps: int) -> None:
    settings = Settings(night_steps=50, night_batch=batch, _env_file=None)
    recipe = Recipe.of(settings, size, goes_on=False)
    assert recipe.steps == steps
    assert recipe.steps * min(batch, size) <= 12 * size


@pytest.mark.parametrize(("goes_on", "share"), [(False, 1.0), (True, 0.125)])
def test_first_step_is_as_large_as_its_rate(engine: ScriptedEngine, goes_on: bool, share: float) -> None:
    sides, network = sides_of(engine), fresh(engine)
    before = network.base.detach().clone()
    recipe = replace(RECIPE, steps=1, goes_on=goes_on)
    trained(engine, sides, network, recipe)
    moved = float((network.base.detach() - before).abs().max())
    assert moved == pytest.approx(share * recipe.learning_rate, rel=0.01)


def test_training_is_reproducible(engine: ScriptedEngine) -> None:
    sides, one, two = sides_of(engine), fresh(engine), fresh(engine)
    assert trained(engine, sides, one) == trained(engine, sides, two)
    assert torch.equal(one.base, two.base)


def test_resumed_training_equals_an_uninterrupted_one(engine: ScriptedEngine, tmp_path: Path) -> None:
    sides, whole, resumed = sides_of(engine), fresh(engine), fresh(engine)
    uninterrupted = trained(engine, sides, whole)
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(Interrupted(), sides, fresh(engine), checkpoint=checkpoint)
    again = trained(engine, sides, resumed, checkpoint=checkpoint)
    assert again.resumed_at == 10
    assert replace(again, resumed_at=0) == uninterrupted
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_training_goes_on_without_a_checkpoint_where_there_is_no_room(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    sides, checkpoint = sides_of(engine), tmp_path / "checkpoint"
    whole = trained(engine, sides, fresh(engine), checkpoint=checkpoint, room=Disk(free_mib=99))
    assert (whole.steps, list(tmp_path.iterdir())) == (RECIPE.steps, [])
    trained(engine, sides, fresh(engine), checkpoint=checkpoint, room=Disk(free_mib=100))
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_finished_training_is_not_repeated(engine: ScriptedEngine, tmp_path: Path) -> None:
    sides, checkpoint = sides_of(engine), tmp_path / "checkpoint.safetensors"
    first = trained(engine, sides, fresh(engine), checkpoint=checkpoint)
    engine.calls.clear()
    again = trained(engine, sides, fresh(engine), checkpoint=checkpoint)
    assert again.evaluations == first.evaluations
    assert not engine.calls


def test_checkpoint_of_another_training_is_not_used(engine: ScriptedEngine, tmp_path: Path) -> None:
    sides, checkpoint = sides_of(engine), tmp_path / "checkpoint.safetensors"
    trained(engine, sides, fresh(engine), checkpoint=checkpoint)
    other = trained(engine, sides, fresh(engine), replace(RECIPE, seed=1), checkpoint=checkpoint)
    assert other.resumed_at == 0


def test_broken_checkpoint_is_not_used(engine: ScriptedEngine, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(b"\x00" * 100)
    assert trained(engine, sides_of(engine), fresh(engine), checkpoint=checkpoint).resumed_at == 0


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    engine = Unsteady()
    engine.calls_with_nan = range(2, 4)
    sides, network = sides_of(engine), fresh(engine)
    trained(engine, sides, network)
    assert asyncio.run(mean_likelihood(engine, network, sides.holdout)) > -0.5


def test_gradients_that_stay_not_finite_end_the_training() -> None:
    engine = Unsteady()
    engine.calls_with_nan = range(2, 99)
    with pytest.raises(TrainingDivergedError, match="not finite"):
        trained(engine, sides_of(engine), fresh(engine))


def wrongly_taught(sides: Split) -> Split:
    """Training teaches other answers than validation asks for."""
    wrong = [replace(e, answer_token_ids=(*f"{POOR}7".encode(), CLOSE)) for e in sides.train]
    return replace(sides, train=tuple(wrong))


def test_weights_whose_answers_agree_most_are_kept_of_equals_the_latest() -> None:
    """Whatever their likelihood says, and at whatever step, also where it goes on from an earlier prior."""
    for goes_on in (False, True):
        counters, recipe, worth = Counters(""), replace(RECIPE, goes_on=goes_on), []
        for step, agreement in enumerate(
            ([0, 0, 1, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0])
        ):
            counters.step = 5 * step + 1
            worth.append(_note(counters, look([-1.0 - step] * 2, agreement), recipe))
        assert worth == [True, True, True, False, True]
        assert [found.agreement for found in counters.evaluations] == [0.25, 0.5, 0.5, 0.25, 0.75]
        assert [found.log_likelihood for found in counters.evaluations] == [-1, -2, -3, -4, -5]


def test_answers_that_agree_clearly_less_for_long_end_the_training(engine: ScriptedEngine) -> None:
    """The prior is good already, and training teaches poor answers."""
    sides, network = sides_of(engine), fresh(engine)
    trained(engine, sides, network)
    recipe = replace(RECIPE, steps=100)
    kept = copy.deepcopy(network)
    found = trained(engine, wrongly_taught(sides), network, recipe)
    agreed = [look.agreement for look in found.evaluations]
    assert agreed[: found.best_step // 10 + 1] == [1] * (found.best_step // 10 + 1)
    assert max(agreed[-4:]) < 0.5  # weights that are taught badly for long may still be right by chance
    assert 0 < found.best_step < found.steps < 100
    trained(engine, wrongly_taught(sides), kept, replace(recipe, steps=found.best_step))
    assert all(torch.equal(kept.state_dict()[name], value) for name, value in network.state_dict().items())


def test_weights_that_were_kept_before_an_interruption_are_kept_after_it(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    sides, start = sides_of(engine), fresh(engine)
    trained(engine, sides, start)
    wrong, recipe = wrongly_taught(sides), replace(RECIPE, steps=100)
    whole, resumed = copy.deepcopy(start), copy.deepcopy(start)
    uninterrupted = trained(engine, wrong, whole, recipe)
    checkpoint, mortal = tmp_path / "checkpoint.safetensors", Interrupted()
    mortal.gradients_left = uninterrupted.best_step + 25
    with pytest.raises(KeyboardInterrupt):
        trained(mortal, wrong, copy.deepcopy(start), recipe, checkpoint=checkpoint)
    again = trained(engine, wrong, resumed, recipe, checkpoint=checkpoint)
    assert again.resumed_at == uninterrupted.best_step + 20
    assert replace(again, resumed_at=0) == uninterrupted
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in resumed.state_dict().items())


def test_long_trainings_are_looked_at_as_often_as_short_ones() -> None:
    for steps, looks in ((6, [0, 6]), (25, [0, 10, 20, 25]), (1000, list(range(0, 1001, 100)))):
        recipe = replace(RECIPE, steps=steps)
        assert [step for step in range(steps + 1) if recipe.looks_at(step)] == looks


def test_the_newest_training_answers_are_watched_where_there_are_few_for_validation() -> None:
    """And each kind of task in turn."""
    engine = ScriptedEngine()
    sides = split(scripted_episodes(engine, 90), holdout_share=0.25, seed=0)
    assert len(sides.validation) < MAX_WATCHED < len(sides.validation) + len(sides.train)
    engine.calls.clear()
    trained(engine, sides, fresh(engine), replace(RECIPE, steps=1))
    first, second = (call.prompts for call in engine.calls if call.method == "generate")
    assert first == second
    assert len(first) == MAX_WATCHED
    newest = sorted(sides.train, key=lambda e: e.created_at, reverse=True)
    shares = []
    for topic in ("sums", "poems", "news"):
        mine = [prompt for prompt in first if engine.topic(prompt) == topic]
        shares.append(len(mine))
        wanted = [e.prompt_token_ids for e in (*sides.validation, *newest)]
        assert mine == [prompt for prompt in wanted if engine.topic(prompt) == topic][: len(mine)]
    assert sorted(shares) == [10, 11, 11]


def test_without_generation_training_stops_when_validation_gets_worse_and_keeps_what_was_good() -> None:
    engine = Mute()
    sides, network = sides_of(ScriptedEngine()), fresh(engine)
    good = trained(engine, sides, network, replace(RECIPE, steps=10))
    assert good.best_step == 10
    assert good.evaluations[-1].agreement is None
    asked = torch.from_numpy(kind_means(stack_keys(sides.train), stack_keys(sides.validation)))
    before = asyncio.run(mean_likelihood(engine, network, sides.validation, asked))
    found = trained(engine, wrongly_taught(sides), network, replace(RECIPE, steps=100))
    assert found.steps < 100
    assert found.best_step < found.steps
    after = asyncio.run(mean_likelihood(engine, network, sides.validation, asked))
    kept = {e.step: e.log_likelihood for e in found.evaluations}[found.best_step]
    assert after == pytest.approx(kept, abs=1e-6)
    assert after > before - 1


def test_training_asks_with_each_episodes_key_and_its_watch_with_the_mean_of_a_kind(
    engine: ScriptedEngine,
) -> None:
    sides, network = sides_of(engine), fresh(engine)
    asked: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].clone()))
    trained(engine, sides, network, replace(RECIPE, steps=1))
    validating, watching, training, *again = asked
    keys = stack_keys(sides.train)
    assert all(any(np.array_equal(key, known) for known in keys) for key in training.numpy())
    assert validating.numpy() == pytest.approx(kind_means(keys, stack_keys(sides.validation)))
    watched = stack_keys(_watched(sides.train, sides.validation))
    assert watching.numpy() == pytest.approx(kind_means(keys, watched))
    assert all(map(torch.equal, again, (validating, watching)))


def test_without_generation_a_prior_that_goes_on_keeps_its_last_weights_or_its_first() -> None:
    """What it loses while the rate is high may come back."""
    engine = Mute()
    sides, network = sides_of(ScriptedEngine()), fresh(engine)
    trained(engine, sides, network, replace(RECIPE, steps=10))
    recipe = replace(RECIPE, steps=98, goes_on=True)
    better = trained(engine, sides, copy.deepcopy(network), recipe)
    assert better.best_step == better.steps == 98
    first = copy.deepcopy(network.state_dict())
    worse = trained(engine, wrongly_taught(sides), network, recipe)
    assert (worse.best_step, worse.steps) == (0, 98)
    assert all(torch.equal(value, first[name]) for name, value in network.state_dict().items())


def test_likelihood_of_a_prior_that_goes_on_is_measured_by_its_first_weights() -> None:
    """A rise in between, which it loses again, is no reason to undo what it has gained."""
    for goes_on, kept, stale in ((True, [True, False, True], 1), (False, [True, True, False], 2)):
        counters, recipe = Counters(""), replace(RECIPE, goes_on=goes_on)
        found = []
        for step, value in ((0, -0.50), (10, -0.40), (recipe.steps, -0.45)):
            counters.step = step
            found.append(_note(counters, look([value] * 4), recipe))
        assert found == kept
        assert not _note(counters, look([-0.55] * 4), recipe)
        assert counters.stale == stale


def test_a_plateau_of_likelihood_is_no_reason_to_stop() -> None:
    counters = Counters("")
    for step, values in enumerate(
        ([-1.0, -2.0, -3.0], [-0.9, -2.2, -3.0], [-1.1, -1.9, -3.1], [-1.5, -2.5, -3.5])
    ):
        counters.step = step
        assert _note(counters, look(values), RECIPE) == (step < 3)
    assert counters.stale == 1
    assert counters.best_values == pytest.approx([-1.0, -2.0, -3.0])
    assert not _note(counters, look([-math.inf] * 3), RECIPE)


@pytest.mark.parametrize(("fall", "worth"), [((3.0, 0.0, 3.0, 0.0), True), ((2.0, 1.0, 2.0, 1.0), False)])
def test_clearly_worse_is_two_standard_errors(fall: tuple[float, ...], worth: bool) -> None:
    """Both fall by 1.5 on average: that is 1.7 standard errors of the first, 5.2 of the second."""
    counters = Counters("")
    assert _note(counters, look([0.0] * 4), RECIPE)
    counters.step = 1
    assert _note(counters, look([-value for value in fall]), RECIPE) == worth


def test_latents_that_did_not_earn_their_place_are_not_regressed_on(engine: ScriptedEngine) -> None:
    sides = sides_of(engine)
    recipe = replace(RECIPE, objective="regress")
    wild = [replace(e, latent=e.latent * 50, latent_earned=False) for e in sides.train[::2]]
    network, alone = fresh(engine), fresh(engine)
    before = [value.clone() for value in network.parameters()]
    trained(engine, replace(sides, train=tuple(wild)), network, recipe)
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))
    trained(engine, replace(sides, train=(*wild, *sides.train[1::2])), alone, recipe)
    assert float(alone.base.detach().norm()) < 2 * float(before[0].detach().norm())


def test_weights_follow_reward_and_what_it_gained(engine: ScriptedEngine) -> None:
    base = scripted_episodes(engine, 3)
    episodes = [
        replace(base[0], reward=0.9, plain_reward=0.9),
        replace(base[1], reward=0.9, plain_reward=0.2),
        replace(base[2], reward=0.5, plain_reward=0.6),
    ]
    weights = episode_weights(episodes)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[1] > weights[0] > weights[2] > 0


def test_progress_reaches_its_end(engine: ScriptedEngine) -> None:
    seen: list[tuple[int, int]] = []
    found = trained(
        engine, sides_of(engine), fresh(engine), progress=lambda done, total, _: seen.append((done, total))
    )
    assert seen[0] == (0, RECIPE.steps)
    assert seen[-1] == (found.steps, RECIPE.steps)
