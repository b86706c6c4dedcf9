"""Whole nights on the scripted engine."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from sqlalchemy import update

from config.settings import Settings
from memory.atomic import write_json
from memory.episode import now
from memory.night import NightRecord, UnknownNightError
from memory.schema import leases
from memory.spaces import memory_id
from model.engine import Generation, LatentGradient, ModelUnavailableError
from model.scripted_engine import CLOSE, POOR, ScriptedEngine
from tests.worker.conftest import Place, scripted_episodes
from worker import lock as locks
from worker import night as nights
from worker.lock import night_lock
from worker.manifest import trained_prompts
from worker.neighbourhood import prompt_digest
from worker.night import MAX_ATTEMPTS, run_night
from worker.recovery import orphaned_nights, sweep


class Killed(BaseException):
    """Stands for a worker that is killed: nothing may catch it."""


class Mortal(ScriptedEngine):
    """Is killed after some gradients."""

    gradients_left = 12

    async def latent_gradient(self, *arguments: Any, **named: Any) -> LatentGradient:
        self.gradients_left -= 1
        if self.gradients_left < 0:
            raise Killed
        return await super().latent_gradient(*arguments, **named)


def run(
    place: Place,
    record: NightRecord,
    engine: Callable[[Settings], ScriptedEngine] = lambda _: ScriptedEngine(),
    **settings: Any,
) -> NightRecord:
    return asyncio.run(run_night(record.id, place.settings.model_copy(update=settings), engine))


def test_a_night_promotes_what_is_better(place: Place, engine: ScriptedEngine) -> None:
    episodes = scripted_episodes(engine)
    record = run(place, place.queue(episodes))
    assert record.state == "promoted", record
    assert record.version == place.registry.active() == "v1"
    assert record.parent is None
    assert record.gate is not None
    assert record.gate["decision"] == "promoted"
    assert record.started_at is not None
    assert record.finished_at is not None
    assert list((place.settings.data_dir / "snapshots").iterdir()) == []


def test_the_published_prior_answers_better_than_none(place: Place, engine: ScriptedEngine) -> None:
    run(place, place.queue(scripted_episodes(engine)))
    prior = place.registry.load("v1")
    new = scripted_episodes(engine, 6, start=100)
    for episode in new:
        assert prior.covers(episode.key)
        latent = prior.network.base.new_tensor(prior.predict(episode.key))
        assert engine.score(episode.prompt_token_ids, latent) > 1
        assert engine.score(episode.prompt_token_ids, None) < -2


def test_the_manifest_says_what_the_version_is_made_of(place: Place, engine: ScriptedEngine) -> None:
    episodes = scripted_episodes(engine)
    record = run(place, place.queue(episodes))
    manifest = place.registry.load("v1").manifest
    assert manifest["night"] == record.id
    assert manifest["promoted"] is True
    named = [*manifest["episode_ids"], *manifest["validation_ids"], *manifest["holdout_ids"]]
    assert sorted(named) == sorted(episode.id for episode in episodes)
    assert manifest["gate"] == record.gate
    assert manifest["settings"]["objective"] == place.settings.night_objective
    assert manifest["metrics"]["coverage"] > 0.5
    assert 0.5 <= place.registry.load("v1").recall_floor == manifest["recall_floor"] < 1


def test_a_night_sees_what_it_trains_on_twelve_times_at_most(place: Place, engine: ScriptedEngine) -> None:
    place.settings.night_steps = 10_000
    run(place, place.queue(scripted_episodes(engine)))
    manifest = place.registry.load("v1").manifest
    assert manifest["settings"]["steps"] == 12 * len(manifest["episode_ids"]) // place.settings.night_batch


def test_a_refused_candidate_is_kept_but_not_active(place: Place, engine: ScriptedEngine) -> None:
    """Half of the remembered answers contradict the other half: there is nothing to learn."""
    mixed = [
        replace(episode, answer_token_ids=(*f"{POOR}7".encode(), CLOSE)) if number % 2 else episode
        for number, episode in enumerate(scripted_episodes(engine, progress=0.0))
    ]
    record = run(place, place.queue(mixed))
    assert record.state == "refused", record
    assert record.version == "v1"
    assert place.registry.active() is None
    assert place.registry.load("v1").manifest["promoted"] is False
    assert "not better than" in record.message


def test_a_second_night_starts_from_the_active_prior(place: Place, engine: ScriptedEngine) -> None:
    first = scripted_episodes(engine)
    run(place, place.queue(first))
    record = run(place, place.queue([*first, *scripted_episodes(engine, 20, start=40)]))
    manifest = place.registry.load("v2").manifest
    assert record.parent == manifest["parent"] == manifest["started_from"] == "v1"
    assert manifest["settings"]["goes_on"] is True
    before = trained_prompts(place.registry.load("v1"))
    assert before < trained_prompts(place.registry.load("v2"))
    by_id = {episode.id: episode for episode in first}
    held_out = {prompt_digest(by_id[i]) for i in manifest["holdout_ids"] if i in by_id}
    assert not held_out & before


def test_what_an_operator_activates_during_the_night_stands(
    place: Place, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(place, place.queue(scripted_episodes(engine)))
    place.registry.activate(None)
    decide = nights.decide

    async def rolled_back(*arguments: Any, **named: Any) -> Any:
        place.registry.activate("v1")
        return await decide(*arguments, **named)

    monkeypatch.setattr(nights, "decide", rolled_back)
    record = run(place, place.queue(scripted_episodes(engine)))
    assert place.registry.load("v2").manifest["promoted"] is True
    assert (record.state, record.version, place.registry.active()) == ("refused", "v2", "v1")
    assert "v1 was made active meanwhile and stays so" in record.message


def test_a_rollback_is_not_undone_by_the_next_night(place: Place, engine: ScriptedEngine) -> None:
    """The same memory would train the same weights and promote them again."""
    run(place, place.queue(scripted_episodes(engine)))
    place.registry.activate(None, pinned=True)
    record = run(place, place.queue(scripted_episodes(engine)))
    assert place.registry.load("v2").manifest["promoted"] is True
    assert (record.state, place.registry.active()) == ("refused", None)
    assert "no prior was chosen by an operator and stays active" in record.message
    assert "latentevolve priors release" in record.message
    place.registry.release()
    assert run(place, place.queue(scripted_episodes(engine))).state == "promoted"
    assert place.registry.active() == "v3"


def test_too_few_episodes_skip_the_night(place: Place, engine: ScriptedEngine) -> None:
    record = run(place, place.queue(scripted_episodes(engine, 12)))
    assert record.state == "skipped"
    assert "12 episodes" in record.message
    assert place.registry.versions() == []


def test_poor_episodes_do_not_count(place: Place, engine: ScriptedEngine) -> None:
    poor = [replace(episode, reward=0.3) for episode in scripted_episodes(engine, 30)]
    assert run(place, place.queue(poor)).state == "skipped"


def test_one_prompt_over_and_over_skips_the_night(place: Place, engine: ScriptedEngine) -> None:
    (episode,) = scripted_episodes(engine, 1)
    record = run(place, place.queue([replace(episode, id=f"copy-{number}") for number in range(30)]))
    assert record.state == "skipped"
    assert "1 different prompts" in record.message


def test_episodes_of_another_space_fail_the_night(place: Place, engine: ScriptedEngine) -> None:
    record = run(place, place.queue(scripted_episodes(engine)), lambda _: ScriptedEngine(revision="another"))
    assert record.state == "failed"
    assert "SpaceMismatchError" in str(record.error)
    assert "same model" in str(record.error)


def test_a_night_of_a_space_that_is_known_by_the_id_of_an_earlier_build_runs(
    place: Place, engine: ScriptedEngine
) -> None:
    earlier = replace(place, space=engine.space.earlier_id)
    known_as = memory_id(place.settings, engine.space.own_id, [engine.space.earlier_id])
    assert known_as == engine.space.own_id  # nobody has memories yet
    write_json(place.settings.data_dir / "spaces.json", {engine.space.own_id: earlier.space})
    episodes = [replace(episode, space=earlier.space) for episode in scripted_episodes(engine)]
    record = run(earlier, earlier.queue(episodes))
    assert record.state == "promoted", record
    assert earlier.registry.active() == record.version


def test_a_model_that_cannot_be_loaded_fails_the_night(place: Place, engine: ScriptedEngine) -> None:
    def missing(_: Settings) -> ScriptedEngine:
        raise ModelUnavailableError("there is no such model")

    record = run(place, place.queue(scripted_episodes(engine)), missing)
    assert (record.state, record.phase) == ("failed", "load")
    assert record.error == "ModelUnavailableError: there is no such model"


def test_an_unexpected_error_is_recorded(place: Place, engine: ScriptedEngine) -> None:
    def broken(_: Settings) -> ScriptedEngine:
        raise ZeroDivisionError("oh")

    record = run(place, place.queue(scripted_episodes(engine)), broken)
    assert record.state == "failed"
    assert record.error == "unexpected ZeroDivisionError in phase load: oh"


def test_a_missing_snapshot_fails_the_night(place: Place) -> None:
    record = run(place, place.log.create(place.space, "api"))
    assert record.state == "failed"
    assert "snapshot" in str(record.error)


def test_an_unknown_night_is_an_error(place: Place) -> None:
    with pytest.raises(UnknownNightError):
        asyncio.run(run_night("nothing", place.settings, lambda _: ScriptedEngine()))


def test_prompts_without_a_place_for_latents_are_left_out(place: Place, engine: ScriptedEngine) -> None:
    episodes = scripted_episodes(engine)
    odd = [replace(episode, id=f"odd-{episode.id}", prompt_token_ids=(1, 2, 3)) for episode in episodes[:3]]
    record = run(place, place.queue([*odd, *episodes]))
    assert record.state == "promoted", record
    manifest = place.registry.load("v1").manifest
    assert not [name for name in manifest["episode_ids"] if name.startswith("odd")]


def test_a_night_that_has_ended_is_left_alone(place: Place, engine: ScriptedEngine) -> None:
    first = run(place, place.queue(scripted_episodes(engine)))
    assert run(place, first) == first
    assert [manifest["version"] for manifest in place.registry.versions()] == ["v1"]


def test_a_crashed_night_goes_on_from_its_checkpoint(place: Place, engine: ScriptedEngine) -> None:
    record = place.queue(scripted_episodes(engine))
    with pytest.raises(Killed):
        run(place, record, lambda _: Mortal())
    crashed = place.log.get(record.id)
    assert crashed is not None
    assert (crashed.state, crashed.phase) == ("running", "train")
    assert orphaned_nights(place.settings) == [record.id]
    again = ScriptedEngine()
    assert run(place, record, lambda _: again).state == "promoted"
    whole = Place(
        place.settings.model_copy(update={"data_dir": place.settings.data_dir / "other"}), place.space
    )
    other = ScriptedEngine()
    assert run(whole, whole.queue(scripted_episodes(engine)), lambda _: other).state == "promoted"
    assert gradients(again) == gradients(other) - 10
    assert not (place.settings.data_dir / "nights" / record.id).exists()


def test_a_night_whose_checkpoint_is_spoilt_begins_anew(place: Place, engine: ScriptedEngine) -> None:
    record = place.queue(scripted_episodes(engine, 4))
    folder = place.settings.data_dir / "nights" / record.id
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").write_bytes(b"{")
    assert run(place, record).state == "skipped"


def test_checkpoints_of_ended_nights_are_swept(place: Place, engine: ScriptedEngine) -> None:
    ended, other = place.log.create("other", "api"), place.queue(scripted_episodes(engine, 4))
    root = place.settings.data_dir / "nights"
    for name in (ended.id, other.id, "nobody"):
        (root / name).mkdir(parents=True)
        (root / name / "checkpoint.safetensors").touch()
    place.log.update(replace(ended, state="failed", error="its worker gave no sign of life"))
    sweep(place.settings)
    assert [folder.name for folder in root.iterdir() if folder.is_dir()] == [other.id]
    assert {night.id for night in place.log.list()} == {ended.id, other.id}


def test_a_night_without_its_snapshot_is_left_to_the_gateway(place: Place, engine: ScriptedEngine) -> None:
    place.log.create(place.space, "schedule")  # a gateway is writing it now, or died over it
    assert orphaned_nights(place.settings) == []


def killed(*_: object) -> None:
    raise Killed


def gradients(engine: ScriptedEngine) -> int:
    return sum(call.method == "latent_gradient" for call in engine.calls)


def test_a_night_that_crashed_after_publishing_does_not_publish_again(
    place: Place, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = place.queue(scripted_episodes(engine))
    monkeypatch.setattr(nights, "_finish", killed)
    with pytest.raises(Killed):
        run(place, record)
    monkeypatch.undo()
    assert place.registry.active() is None
    assert run(place, record).state == "promoted"
    assert place.registry.active() == "v1"
    assert len(place.registry.versions()) == 1


def test_a_night_that_kills_its_worker_is_given_up(place: Place, engine: ScriptedEngine) -> None:
    record = place.queue(scripted_episodes(engine))
    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(Killed):
            run(place, record, lambda _: type("Doomed", (Mortal,), {"gradients_left": 0})())
    ended = run(place, record)
    assert ended.state == "failed"
    assert f"died {MAX_ATTEMPTS} times" in str(ended.error)


def test_a_night_that_got_further_each_time_is_not_given_up(place: Place, engine: ScriptedEngine) -> None:
    record = place.queue(scripted_episodes(engine))
    for _ in range(MAX_ATTEMPTS + 1):
        with pytest.raises(Killed):
            run(place, record, lambda _: type("Tired", (Mortal,), {"gradients_left": 12})(), night_steps=60)
    assert run(place, record, night_steps=60).state == "promoted"


def test_a_night_that_was_stopped_on_purpose_is_not_given_up(place: Place, engine: ScriptedEngine) -> None:
    record = place.queue(scripted_episodes(engine))

    def stopped(_: Settings) -> ScriptedEngine:
        raise KeyboardInterrupt

    for _ in range(MAX_ATTEMPTS + 1):
        with pytest.raises(KeyboardInterrupt):
            run(place, record, stopped)
    assert run(place, record).state == "promoted"


def test_a_night_survives_a_look_that_saw_infinity(place: Place, engine: ScriptedEngine) -> None:
    class Dazzled(ScriptedEngine):
        seen = 0

        async def log_likelihood(self, *arguments: Any, **named: Any) -> torch.Tensor:
            Dazzled.seen += 1
            found = await super().log_likelihood(*arguments, **named)
            return found * math.inf if Dazzled.seen == 2 else found

    record = run(place, place.queue(scripted_episodes(engine)), lambda _: Dazzled())
    assert record.state == "promoted"
    looks = place.registry.load("v1").manifest["metrics"]["validation"]
    assert [look["log_likelihood"] is None for look in looks] == [False, True, False, False, False]
    assert [look["agreement"] is None for look in looks] == [False, True, False, False, False]


def lost() -> None:
    raise AssertionError("the lock was lost")


def test_a_night_delivered_twice_runs_once(place: Place, engine: ScriptedEngine) -> None:
    record = place.queue(scripted_episodes(engine))
    with night_lock(place.state, place.space, record.id, lost):
        assert run(place, record).state == "queued"
        assert orphaned_nights(place.settings) == []
    assert run(place, record).state == "promoted"


def test_a_night_that_another_worker_has_taken_stops_and_leaves_it_alone(
    place: Place, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    record = place.queue(scripted_episodes(engine))

    def robbed(_: Settings) -> ScriptedEngine:
        with place.state.write() as connection:
            connection.execute(update(leases).values(holder="another-machine/1/1/1"))
        while any(thread.name == "lock" for thread in threading.enumerate()):
            time.sleep(0.01)  # until it has seen that
        return engine

    found = run(place, record, robbed)
    assert (found.state, found.version) == ("running", None)
    assert place.registry.versions() == []
    assert (place.settings.data_dir / "snapshots" / record.id).is_dir()


def test_a_night_beside_another_one_of_its_space_is_skipped(place: Place, engine: ScriptedEngine) -> None:
    record = place.queue(scripted_episodes(engine))
    with night_lock(place.state, place.space, "another", lost):
        ended = run(place, record)
    assert ended.state == "skipped"
    assert ended.message == "night another of this space is still running"
    assert list((place.settings.data_dir / "snapshots").iterdir()) == []


def test_a_night_that_was_given_up_by_others_stops(place: Place, engine: ScriptedEngine) -> None:
    record = place.queue(scripted_episodes(engine))

    def overruled(_: Settings) -> ScriptedEngine:
        running = place.log.get(record.id)
        assert running is not None
        place.log.update(replace(running, state="failed", error="silent for too long", finished_at=now()))
        return ScriptedEngine()

    ended = run(place, record, overruled)
    assert (ended.state, ended.error) == ("failed", "silent for too long")
    assert list((place.settings.data_dir / "snapshots").iterdir()) == []
    assert place.registry.versions() == []


def test_a_corrupt_active_prior_is_no_control(place: Place, engine: ScriptedEngine) -> None:
    episodes = scripted_episodes(engine)
    run(place, place.queue(episodes))
    weights = place.settings.data_dir / "priors" / place.space / "v1" / "prior.safetensors"
    weights.write_bytes(b"nothing")
    record = run(place, place.queue(episodes))
    assert record.state == "promoted", record
    assert record.parent is None
    assert record.version == "v2"


def test_phases_are_seen_from_outside(place: Place, engine: ScriptedEngine) -> None:
    record = place.queue(scripted_episodes(engine))

    class Watching(ScriptedEngine):
        """Looks at the record whenever it is called."""

        seen: ClassVar[set[tuple[str, str, str]]] = set()

        async def latent_gradient(self, *arguments: Any, **named: Any) -> LatentGradient:
            self.look("gradient")
            return await super().latent_gradient(*arguments, **named)

        async def generate(self, *arguments: Any, **named: Any) -> list[Generation]:
            self.look("answers")
            return await super().generate(*arguments, **named)

        def look(self, what: str) -> None:
            found = place.log.get(record.id)
            assert found is not None
            self.seen.add((what, found.state, found.phase))

    run(place, record, lambda _: Watching())
    assert Watching.seen == {
        ("gradient", "running", "train"),
        ("answers", "running", "train"),
        ("answers", "running", "gate"),
    }
