"""Records of nights: one open night a space, states that only go forward."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from memory.listing import Place
from memory.night import (
    NightLog,
    NightRecord,
    NightRunningError,
    NightStateError,
    Tally,
    UnknownNightError,
)
from memory.schema import nights
from memory.state import State


@pytest.fixture
def log(state: State) -> NightLog:
    return NightLog(state)


def test_a_night_goes_from_queued_to_its_end(log: NightLog, state_url: str) -> None:
    record = log.create("space-a", "api")
    assert (record.state, record.phase, record.started_at, record.finished_at) == (
        "queued",
        "snapshot",
        None,
        None,
    )
    record = log.update(replace(record, state="running", phase="train", done=3, total=60, parent="v1"))
    assert record.started_at is not None
    started = record.started_at
    record = log.update(replace(record, phase="evidence", done=0, total=5))
    assert record.started_at == started
    assert record.finished_at is None
    evidence = {"clusters": [{"row": 0, "e_value": 1.25}]}
    record = log.update(replace(record, state="promoted", version="v2", evidence=evidence))
    assert record.ended
    assert record.finished_at is not None
    assert record.finished_at >= started >= record.created_at
    with State(state_url) as other_process:
        assert NightLog(other_process).get(record.id) == record


def test_a_space_has_one_open_night(log: NightLog) -> None:
    first = log.create("space-a", "schedule")
    with pytest.raises(NightRunningError) as refusal:
        log.create("space-a", "api")
    assert refusal.value.record == first
    assert log.running("space-a") == first
    other = log.create("space-b", "api")
    assert log.running("space-b") == other
    log.update(replace(first, state="running"))
    with pytest.raises(NightRunningError):
        log.create("space-a", "episodes")
    log.update(replace(first, state="failed", error="the worker died"))
    assert log.running("space-a") is None
    assert log.create("space-a", "cli").state == "queued"


def test_of_many_at_once_one_is_created(log: NightLog) -> None:
    def create(_: int) -> NightRecord | None:
        try:
            return log.create("space-a", "api")
        except NightRunningError:
            return None

    with ThreadPoolExecutor(8) as pool:
        created = [record for record in pool.map(create, range(16)) if record is not None]
    assert log.list() == created
    assert len(created) == 1


@pytest.mark.parametrize("end", ["promoted", "refused", "skipped", "failed"])
def test_an_ended_night_does_not_change(log: NightLog, end: Any) -> None:
    record = log.create("space-a", "api")
    record = log.update(replace(record, state="running"))
    ended = log.update(replace(record, state=end, version="v1"))
    for change in ({"state": "running"}, {"state": "queued"}, {"message": "later"}, {}):
        with pytest.raises(NightStateError, match=f"ended as {end}"):
            log.update(replace(ended, **change))
    assert log.get(record.id) == ended


def test_a_running_night_may_be_run_again_but_not_queued(log: NightLog) -> None:
    # Its worker died and the queue hands it to another one.
    record = log.update(replace(log.create("space-a", "api"), state="running", phase="train", done=5))
    again = log.update(replace(record, state="running", phase="load", done=0))
    assert again.started_at == record.started_at
    with pytest.raises(NightStateError, match="cannot be queued"):
        log.update(replace(again, state="queued"))


@pytest.mark.parametrize(
    "change",
    [
        {"space": "space-b"},
        {"trigger": "cli"},
        {"state": "asleep"},
        {"phase": "dream"},
        {"state": "promoted"},
    ],
)
def test_impossible_changes_are_refused(log: NightLog, change: dict[str, Any]) -> None:
    record = log.create("space-a", "api")
    with pytest.raises(NightStateError):
        log.update(replace(record, **change))
    assert log.get(record.id) == record


def test_an_update_is_a_sign_of_life(log: NightLog) -> None:
    record = log.create("space-a", "api")
    later = log.update(record)
    assert later.updated_at > record.updated_at
    assert log.get(record.id) == later


def test_nights_are_listed_newest_first(log: NightLog) -> None:
    assert log.list() == []
    made = []
    for number in range(5):
        record = log.create(f"space-{number}", "api")
        made.append(log.update(replace(record, state="skipped", message="too few")))
    assert log.list() == made[::-1]


@pytest.mark.parametrize("change", [{}, {"state": "running", "phase": "train", "done": 3, "total": 60}])
def test_a_night_that_is_cancelled_has_ended_and_makes_room(log: NightLog, change: dict[str, Any]) -> None:
    night = log.update(replace(log.create("space-a", "api"), **change))
    cancelled = log.cancel(night.id)
    assert (cancelled.state, cancelled.ended) == ("cancelled", True)
    assert cancelled.finished_at is not None
    assert cancelled.message == f"cancelled in phase {night.phase}"
    assert log.get(night.id) == cancelled
    with pytest.raises(NightStateError):
        log.update(replace(night, done=4))
    with pytest.raises(NightStateError, match="has ended as cancelled"):
        log.cancel(night.id)
    assert log.create("space-a", "api").state == "queued"


def test_a_night_that_is_publishing_cannot_be_cancelled(log: NightLog) -> None:
    night = log.update(replace(log.create("space-a", "api"), state="running", phase="publish"))
    with pytest.raises(NightStateError, match="is publishing"):
        log.cancel(night.id)
    assert log.get(night.id) == night
    log.update(replace(night, state="promoted", version="v1"))
    with pytest.raises(NightStateError, match="has ended as promoted"):
        log.cancel(night.id)
    with pytest.raises(UnknownNightError):
        log.cancel("nobody")


def test_unknown_nights(log: NightLog) -> None:
    for night_id in ("nobody", "../escape", "", ".", "a/b", "a\0b", "caf\udce9"):
        assert log.get(night_id) is None
        with pytest.raises(UnknownNightError):
            log.update(NightRecord(night_id, "space-a", "api"))


def test_texts_that_no_database_takes_are_told_all_the_same(log: NightLog) -> None:
    record = log.update(replace(log.create("space-a", "api"), message="a\0b", error="caf\udce9"))
    found = log.get(record.id)
    assert found is not None
    assert (found.message, found.error) == ("a\ufffdb", "caf?")


def test_attempts_count_until_a_night_gets_further(log: NightLog) -> None:
    record = log.create("space-a", "api")
    assert [log.attempt(record.id, reached) for reached in (0, 0, 10, 10, 10, 20)] == [1, 2, 1, 2, 3, 1]
    log.update(replace(record, state="running"))  # takes nothing of it away
    assert log.attempt(record.id, 20) == 2
    log.forget_attempts(record.id)
    assert log.attempt(record.id, 20) == 1
    with pytest.raises(UnknownNightError):
        log.attempt("nobody", 0)


def test_a_scheduled_time_has_one_night(log: NightLog) -> None:
    time = datetime(2026, 11, 27, 3, 0, tzinfo=UTC)
    first = log.update(replace(log.create("space-a", "schedule", time), state="skipped"))
    with pytest.raises(NightRunningError) as refusal:
        log.create("space-a", "schedule", time)
    assert refusal.value.record == first == log.get(first.id)
    assert log.create("space-b", "schedule", time).scheduled_for == time
    assert log.create("space-a", "schedule", time + timedelta(days=1)).scheduled_for != time


def ended(log: NightLog, space: str, **changes: Any) -> NightRecord:
    return log.update(replace(log.create(space, "api"), **({"state": "skipped"} | changes)))


def test_old_records_go_but_not_those_of_a_version_nor_of_another_space(state: State) -> None:
    log = NightLog(state, limit=3)
    other = [ended(log, name).id for name in ("space", "space+tenant") for _ in range(3)][3:]
    published = ended(log, "space", state="promoted", version="v1")
    ids = [ended(log, "space").id for _ in range(5)]
    open_ = log.create("space", "api")
    assert log.get(open_.id) == open_
    assert [night.id for night in log.list("space")] == [open_.id, *reversed(ids[-3:]), published.id]
    assert [night.id for night in log.list("space+tenant")] == other[::-1]
    assert len(NightLog(state).list()) == 8


def test_a_tenants_pages_show_its_nights_of_every_space_newest_first(state: State) -> None:
    log, parts = NightLog(state), ("a", "a+some_one", "b", "a+someone", "b+some_one", "a+one", "a+some%")
    made = {part: [ended(log, part).id for _ in range(2)] for part in parts}
    for tenant, mine in {
        "default": ("a", "b"),
        "some_one": ("a+some_one", "b+some_one"),
        "someone": ("a+someone",),
        "one": ("a+one",),
        "some%": ("a+some%",),
        "nobody": (),
    }.items():
        shown, page = [], log.page(tenant, 1)
        while page.next is not None:
            shown += page.nights
            page = log.page(tenant, 1, page.next)
        shown += page.nights
        assert [night.id for night in shown] == [name for part in mine for name in made[part]][::-1]


def test_nights_of_one_moment_are_on_one_page_each(state: State) -> None:
    log = NightLog(state)
    made = {ended(log, "a").id for _ in range(5)}
    with state.write() as connection:
        connection.execute(update(nights).values(created_at=datetime(2026, 1, 1, tzinfo=UTC)))
    shown, page = [], log.page("default", 2)
    while page.next is not None:
        shown += page.nights
        page = log.page("default", 2, Place.parse(page.next.cursor))
    shown += page.nights
    assert len(shown) == len(made)
    assert {night.id for night in shown} == made


def test_nights_are_counted_by_space_and_state(state: State) -> None:
    log = NightLog(state)
    ended(log, "a")
    last = ended(log, "a")
    kept = ended(log, "a+tenant", state="promoted", version="v1")
    due = datetime(2026, 11, 1, 3, tzinfo=UTC)
    log.update(replace(log.create("a", "schedule", datetime(2099, 1, 1, 3, tzinfo=UTC)), state="refused"))
    log.create("a", "schedule", due)
    assert set(log.tallies()) == {
        Tally("a", "skipped", 2, last.finished_at, None),
        Tally("a", "queued", 1, None, due),
        Tally("a", "refused", 1, log.list("a")[1].finished_at, None),
        Tally("a+tenant", "promoted", 1, kept.finished_at, None),
    }
