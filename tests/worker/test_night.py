"""Whole nights on the scripted engine."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sqlalchemy import update

from config.settings import Settings
from memory.atomic import write_json
from memory.episode import Episode, now
from memory.night import NightRecord, UnknownNightError
from memory.prior import standings
from memory.schema import leases
from memory.spaces import memory_id
from memory.state import State
from model.engine import Generation, LatentGradient, ModelUnavailableError
from tests.scripted_engine import CLOSE, POOR, ScriptedEngine
from tests.tables import row
from tests.worker.conftest import Place, scripted_episodes
from worker import lock as locks
from worker import night as nights
from worker.lock import night_lock
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


def contradicting(episodes: Sequence[Episode]) -> list[Episode]:
    """Return episodes of which half contradict the others: there is nothing to learn."""
    poor = f"{POOR}7"
    return [
        replace(episode, answer_text=poor, answer_token_ids=(*poor.encode(), CLOSE))
        if number % 2
        else episode
        for number, episode in enumerate(episodes)
    ]


def outcomes(place: Place) -> dict[str, list[float]]:
    with State.open(place.settings) as state:
        return state.outcomes(place.space, "default")


def clusters(record: NightRecord) -> list[dict[str, Any]]:
    assert record.evidence is not None
    return list(record.evidence["clusters"])


def test_a_night_serves_what_is_better(place: Place, engine: ScriptedEngine) -> None:
    record = run(place, place.queue(scripted_episodes(engine)))
    assert record.state == "promoted", record
    assert record.version == place.registry.active() == "v1"
    assert record.parent is None
    assert [found["standing"] for found in clusters(record)] == ["serves"] * 3
    assert "proven, evidence now" in record.message
    assert "of 20" not in record.message, "what serves may have less again"
    assert record.started_at is not None
    assert record.finished_at is not None
    assert list((place.settings.data_dir / "snapshots").iterdir()) == []


def test_what_the_night_observed_is_kept_as_the_evidence_of_each_row(
    place: Place, engine: ScriptedEngine
) -> None:
    record = run(place, place.queue(scripted_episodes(engine)))
    kept = outcomes(place)
    assert sorted(kept) == ["v1/0", "v1/1", "v1/2"]
    assert [len(kept[f"v1/{at}"]) for at in range(3)] == [found["n"] for found in clusters(record)]
    prior = place.registry.load("v1")
    for at, evidence in enumerate(standings(prior, kept).values()):
        assert evidence.standing == clusters(record)[at]["standing"]
        assert evidence.e_value == pytest.approx(clusters(record)[at]["e_value"])


def test_the_published_table_answers_better_than_none(place: Place, engine: ScriptedEngine) -> None:
    run(place, place.queue(scripted_episodes(engine)))
    prior = place.registry.load("v1")
    for episode in scripted_episodes(engine, 6, start=100):
        assert prior.covers(episode.key)
        latent = torch.from_numpy(prior.predict(episode.key))
        assert engine.score(episode.prompt_token_ids, latent) > 1
        assert engine.score(episode.prompt_token_ids, None) < -2


def test_the_manifest_says_what_the_version_is_made_of(place: Place, engine: ScriptedEngine) -> None:
    episodes = scripted_episodes(engine)
    record = run(place, place.queue(episodes))
    manifest = place.registry.load("v1").manifest
    assert manifest["night"] == record.id
    assert sorted(manifest["labels"]) == sorted([episode.id, None] for episode in episodes)
    assert [training["fold"] for training in manifest["trainings"]] == ["first", "second", "all"]
    assert (manifest["episodes"], manifest["left_out"]) == (40, 0)
    assert 0.5 <= place.registry.load("v1").recall_floor == manifest["recall_floor"] < 1


def test_what_is_no_better_is_on_trial_and_serves_nobody(place: Place, engine: ScriptedEngine) -> None:
    record = run(place, place.queue(contradicting(scripted_episodes(engine, progress=0.0))))
    assert record.state == "on trial", record
    assert record.version == place.registry.active() == "v1"
    assert "serves" not in {found["standing"] for found in clusters(record)}
    assert "v1/0 is on trial" in record.message
    assert "of 20" in record.message


def test_a_later_night_is_compared_with_what_serves_and_carries_it_on(
    place: Place, engine: ScriptedEngine
) -> None:
    first = scripted_episodes(engine)
    run(place, place.queue(first))
    new = scripted_episodes(engine, 20, start=40)
    record = run(place, place.queue([*first, *new]))
    prior = place.registry.load("v2")
    assert record.parent == prior.manifest["parent"] == "v1"
    # Both answer well, so nothing proves the new rows better: the old ones go on serving.
    assert record.state == "on trial"
    assert [row.id for row in prior.rows] == ["v2/0", "v2/1", "v2/2", "v1/0", "v1/1", "v1/2"]
    assert {row.baseline for row in prior.rows[:3]} == {"v1/0", "v1/1", "v1/2"}
    serving = [row for row, found in standings(prior, outcomes(place)).items() if found.standing == "serves"]
    assert serving == ["v1/0", "v1/1", "v1/2"]
    # What the old rows have learned from by heart judges nothing.
    assert sum(found["n"] for found in clusters(record)) <= len(new)


def test_a_row_that_proved_itself_takes_the_place_of_the_one_that_served(
    place: Place, engine: ScriptedEngine
) -> None:
    """What serves answers badly: an operator's evidence, say, was of another day."""
    episodes = scripted_episodes(engine)
    bad = place.registry.publish(
        [
            row(engine.neutral_latent(), np.stack([e.key for e in episodes[topic::3]]), 0.5)
            for topic in range(3)
        ],
        {},
    )
    place.registry.activate(bad)
    with State.open(place.settings) as state:
        for at in range(3):
            pairs = [(f"{number}", 1.0) for number in range(20)]
            state.add_outcomes(place.space, "default", f"{bad}/{at}", pairs, "day")
    record = run(place, place.queue(episodes))
    assert record.state == "promoted"
    prior = place.registry.load("v2")
    assert [one.id for one in prior.rows] == ["v2/0", "v2/1", "v2/2"]
    assert {one.baseline for one in prior.rows} == {"v1/0", "v1/1", "v1/2"}


def test_a_row_of_what_is_not_asked_any_more_is_carried_on(place: Place, engine: ScriptedEngine) -> None:
    episodes = scripted_episodes(engine, 60)
    run(place, place.queue(episodes))
    sums = [episode for episode in scripted_episodes(engine, 90, start=60) if "sums" in episode.prompt_text]
    run(place, place.queue(sums))
    prior = place.registry.load("v2")
    for episode in episodes:
        assert prior.covers(episode.key)


@pytest.mark.parametrize("proven", [False, True])
def test_of_rows_on_trial_the_most_telling_goes_on_beside_new_ones_that_are_not_proven(
    place: Place, engine: ScriptedEngine, proven: bool
) -> None:
    episodes = scripted_episodes(engine)
    keys = np.stack([episode.key for episode in episodes])
    made = row(engine.neutral_latent(), keys, 0.9)
    place.registry.activate(place.registry.publish([made] * 4, {}))
    seen = {"v1/0": [0.5] * 2, "v1/1": [0.5] * 3, "v1/2": [-0.5] * 2}
    with State.open(place.settings) as state:
        for name, differences in seen.items():
            pairs = [(f"{number}", difference) for number, difference in enumerate(differences)]
            state.add_outcomes(place.space, "default", name, pairs, "day")
    if not proven:
        episodes = contradicting(episodes)
    record = run(place, place.queue(episodes))
    assert record.state == ("promoted" if proven else "on trial")
    carried = [one.id for one in place.registry.load("v2").rows if one.born == 1]
    assert carried == ([] if proven else ["v1/1"])


def test_a_row_on_trial_older_than_what_serves_is_let_go(place: Place, engine: ScriptedEngine) -> None:
    episodes = scripted_episodes(engine)
    keys = np.stack([episode.key for episode in episodes])
    made = row(engine.neutral_latent(), keys, 0.9)
    place.registry.publish([made], {})
    (older,) = place.registry.load("v1").rows
    place.registry.activate(place.registry.publish([made, older], {}))
    with State.open(place.settings) as state:
        for name, count in (("v1/0", 3), ("v2/0", 20)):
            pairs = [(f"{number}", 0.5) for number in range(count)]
            state.add_outcomes(place.space, "default", name, pairs, "day")
    run(place, place.queue(contradicting(episodes)))
    assert [one.id for one in place.registry.load("v3").rows if one.born < 3] == ["v2/0"]


def test_a_row_that_harms_is_not_carried_on(place: Place, engine: ScriptedEngine) -> None:
    episodes = scripted_episodes(engine)
    run(place, place.queue(episodes))
    with State.open(place.settings) as state:
        harm = [(f"{number}", -1.0) for number in range(60)]
        state.add_outcomes(place.space, "default", "v1/0", harm, "day")
    run(place, place.queue(episodes))
    prior = place.registry.load("v2")
    assert "v1/0" not in [row.id for row in prior.rows]
    assert prior.rows[0].baseline is None


def test_what_an_operator_activates_stays_until_it_is_released(place: Place, engine: ScriptedEngine) -> None:
    """The same memory would train the same latents and serve them again."""
    run(place, place.queue(scripted_episodes(engine)))
    place.registry.activate(None, pinned=True)
    record = run(place, place.queue(scripted_episodes(engine)))
    assert (record.version, place.registry.active()) == ("v2", None)
    assert "no prior was chosen by an operator and stays active" in record.message
    assert "latentevolve priors release" in record.message
    place.registry.release()
    run(place, place.queue(scripted_episodes(engine)))
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
    assert not [name for name, _ in manifest["labels"] if name.startswith("odd")]


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
    (folder / "all.safetensors").write_bytes(b"{")
    assert run(place, record).state == "skipped"


def test_checkpoints_of_ended_nights_are_swept(place: Place, engine: ScriptedEngine) -> None:
    ended, other = place.log.create("other", "api"), place.queue(scripted_episodes(engine, 4))
    root = place.settings.data_dir / "nights"
    for name in (ended.id, other.id, "nobody"):
        (root / name).mkdir(parents=True)
        (root / name / "all.safetensors").touch()
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


def test_a_corrupt_active_prior_is_not_compared_with(place: Place, engine: ScriptedEngine) -> None:
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
        ("answers", "running", "evidence"),
    }


class Stuck(ScriptedEngine):
    """Hangs in its first gradient, for a minute at most."""

    stopped: ClassVar[list[str]] = []

    def __init__(self, reached: Callable[[], None]) -> None:
        super().__init__()
        self._reached = reached
        self.stopped.clear()

    async def latent_gradient(self, *arguments: Any, **named: Any) -> LatentGradient:
        self._reached()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.stopped.append("in time")
            raise
        raise AssertionError("nobody stopped it")


@pytest.mark.parametrize("kind", ["stuck", "busy"])
def test_a_night_that_is_cancelled_stops_whatever_it_is_doing_and_leaves_nothing(
    place: Place, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(nights, "LOOK_S", 0.01)
    record = place.queue(scripted_episodes(engine))
    cancelled: list[NightRecord] = []

    class Busy(ScriptedEngine):
        async def latent_gradient(self, *arguments: Any, **named: Any) -> LatentGradient:
            if (place.settings.data_dir / "nights" / record.id).is_dir() and not cancelled:
                cancelled.append(place.log.cancel(record.id))
            return await super().latent_gradient(*arguments, **named)

    def factory(_: Settings) -> ScriptedEngine:
        return Stuck(lambda: cancelled.append(place.log.cancel(record.id))) if kind == "stuck" else Busy()

    ended = run(place, record, factory)
    assert [ended] == cancelled
    assert kind == "busy" or Stuck.stopped == ["in time"]
    assert (ended.state, ended.phase, ended.version) == ("cancelled", "train", None)
    assert place.registry.versions() == []
    for folder in ("snapshots", "nights"):
        assert list((place.settings.data_dir / folder).glob("*")) == []
    later = run(place, place.queue(scripted_episodes(engine)))
    assert later.state == "promoted"


def test_a_night_that_is_stopped_says_so_before_its_engine_has_closed(
    place: Place, engine: ScriptedEngine
) -> None:
    """An engine in the midst of a call closes late, and a worker that stops kills what takes long."""
    record = place.queue(scripted_episodes(engine))
    attempts: list[int] = []

    class Slow(ScriptedEngine):
        async def close(self) -> None:
            attempts.append(place.log.attempt(record.id, 0))

    async def stopped() -> None:
        def reached() -> None:
            loop.call_soon(night.cancel)

        loop = asyncio.get_running_loop()
        night = asyncio.ensure_future(run_night(record.id, place.settings, lambda _: Held(reached)))
        await night

    class Held(Slow, Stuck):
        pass

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stopped())
    assert attempts == [1], "it counts none before"


def test_a_night_that_is_cancelled_while_it_waits_in_the_queue_never_begins(
    place: Place, engine: ScriptedEngine
) -> None:
    record = place.queue(scripted_episodes(engine))
    place.log.cancel(record.id)
    assert run(place, record, lambda _: pytest.fail("it began")).state == "cancelled"
    assert list((place.settings.data_dir / "snapshots").iterdir()) == []


def test_a_night_waits_for_one_that_was_cancelled_to_let_go(
    place: Place, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nights, "LOOK_S", 0.01)
    first = place.queue(scripted_episodes(engine))
    with night_lock(place.state, place.space, first.id, lost):
        place.log.cancel(first.id)
        second = place.queue(scripted_episodes(engine))
        looked = threading.Event()
        look = nights.Journal.look
        monkeypatch.setattr(nights.Journal, "look", lambda journal: (looked.set(), look(journal))[1])
        ended: list[NightRecord] = []
        later = threading.Thread(target=lambda: ended.append(run(place, second)))
        later.start()
        assert looked.wait(60), "it waits"
        assert ended == []
    later.join(60)
    assert [one.state for one in ended] == ["promoted"]


def test_a_night_that_waits_for_a_cancelled_one_can_be_cancelled_too(
    place: Place, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nights, "LOOK_S", 0.01)
    first = place.queue(scripted_episodes(engine))
    with night_lock(place.state, place.space, first.id, lost):
        place.log.cancel(first.id)
        second = place.queue(scripted_episodes(engine))
        look = nights.Journal.look

        def cancelling(journal: Any) -> None:
            place.log.cancel(second.id)
            look(journal)

        monkeypatch.setattr(nights.Journal, "look", cancelling)
        assert run(place, second).state == "cancelled"
    assert list((place.settings.data_dir / "snapshots").glob(second.id)) == []


def test_a_row_that_learned_from_what_was_erased_is_in_no_later_version(
    place: Place, engine: ScriptedEngine
) -> None:
    episodes = scripted_episodes(engine)
    run(place, place.queue(episodes))
    place.state.note_erasure(place.space, {"v1/0": True})
    left = [episode for episode in episodes if "sums" not in episode.prompt_text]
    run(place, place.queue(left))
    prior = place.registry.load("v2")
    names = {row.id for row in prior.rows}
    assert "v1/0" not in names
    assert {"v1/1", "v1/2"} <= names, "others go on"
    assert "v1/0" not in {row.baseline for row in prior.rows}
    assert "v1/0" not in prior.learned


def test_the_manifest_names_what_was_learned_by_digest(place: Place, engine: ScriptedEngine) -> None:
    def digests(episodes: Any, version: str) -> dict[str, str]:
        run(place, place.queue(episodes))
        return dict(place.registry.load(version).manifest["digests"])

    episodes = scripted_episodes(engine)
    first = digests(episodes, "v1")
    assert digests(episodes[::-1], "v2") == first, "the order does not matter"
    lines = "".join(f"{name}\n" for name in sorted(episode.id for episode in episodes))
    assert first["episodes_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    told = f"{POOR}7"
    other = [replace(episodes[0], answer_text=told, answer_token_ids=(*told.encode(), CLOSE)), *episodes[1:]]
    changed = digests(other, "v3")
    assert changed["episodes_sha256"] == first["episodes_sha256"]
    assert changed["dataset_sha256"] != first["dataset_sha256"]
