"""When a night's record is written."""

from dataclasses import replace

import pytest

from memory.free_space import NoRoomError
from memory.night import NightLog, NightRecord
from tests.worker.conftest import Place
from worker import journal as journals
from worker.errors import NightOverruledError
from worker.journal import Journal


class Counting(NightLog):
    """Counts what is written."""

    writes = 0
    full = False

    def update(self, record: NightRecord) -> NightRecord:
        self.writes += 1
        if self.full:
            raise NoRoomError("no space left")
        return super().update(record)


@pytest.fixture
def log(place: Place) -> Counting:
    return Counting(place.state)


@pytest.fixture
def journal(place: Place, log: Counting) -> Journal:
    return Journal(log, log.create(place.space, "api"))


def test_progress_is_written_seldom_and_its_end_always(journal: Journal, log: Counting) -> None:
    journal.change(state="running", phase="train", total=500)
    for done in range(501):
        journal.progress(done, 500, f"step {done}")
    assert log.writes <= 5
    found = log.get(journal.record.id)
    assert found is not None
    assert (found.done, found.total, found.message) == (500, 500, "step 500")


def test_a_silent_phase_gives_signs_of_life(
    journal: Journal, log: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "HEARTBEAT_S", 0.01)
    journal.change(state="running", phase="load")
    before = log.get(journal.record.id).updated_at
    with journal.heartbeat():
        while log.get(journal.record.id).updated_at == before:
            pass
    after = log.get(journal.record.id)
    assert after is not None
    assert (after.state, after.phase) == ("running", "load")


def test_progress_that_cannot_be_written_ends_no_night(
    journal: Journal, log: Counting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "PROGRESS_EVERY_S", 0)
    journal.change(state="running", phase="train", total=500)
    log.full = True
    journal.progress(499, 500, "step 499")
    assert "no sign of life" in caplog.text
    log.full = False
    journal.progress(500, 500, "done")
    found = log.get(journal.record.id)
    assert found is not None
    assert found.message == "done"


def test_a_night_that_others_have_ended_is_not_written_over(journal: Journal, log: Counting) -> None:
    journal.change(state="running")
    log.update(replace(journal.record, state="failed", error="silent"))
    with pytest.raises(NightOverruledError):
        journal.change(phase="train")
    with pytest.raises(NightOverruledError):
        journal.progress(1, 100, "goes on")
    found = log.get(journal.record.id)
    assert found is not None
    assert found.error == "silent"
