"""The lock of a space: one holder, gone with its process, wherever that was."""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from sqlalchemy import Connection, insert, update

from memory.schema import leases
from memory.state import State
from worker import lock
from worker.errors import NightBusyError
from worker.lock import is_held, night_lock

ELSEWHERE = "another-boot.7/123/456/uuid"


@pytest.fixture
def state(state_url: str) -> Iterator[State]:
    with State(state_url) as opened:
        yield opened


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "GONE_AFTER_S", 0.3)


def lost() -> None:
    raise AssertionError("the lock was lost")


def hold(url: str, ready: Any) -> None:
    with State(url) as state, night_lock(state, "space", "theirs", lost):
        ready.set()
        threading.Event().wait(60)


def refused(state: State) -> str:
    """Return the night of whoever holds the lock of the space."""
    with pytest.raises(NightBusyError) as error, night_lock(state, "space", "mine", lost):
        pass
    return error.value.holder


def held_elsewhere(state: State) -> None:
    theirs = {"space": "space", "night": "theirs", "holder": ELSEWHERE, "beat": 3}
    with state.write() as connection:
        connection.execute(insert(leases).values(theirs))


def test_the_lock_survives_nobody(state: State, state_url: str) -> None:
    """A killed process holds no lock, also while nobody has asked how it ended."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(state_url, ready))
    process.start()
    assert ready.wait(60)
    assert refused(state) == "theirs"
    assert is_held(state, "space")
    with night_lock(state, "another-space", "mine", lost):
        pass
    process.kill()
    assert process.pid is not None
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_held(state, "space")
    with night_lock(state, "space", "mine", lost):
        assert is_held(state, "space")
        process.join()
        assert refused(state) == "mine"
    assert not is_held(state, "space")


def test_a_holder_elsewhere_lives_while_its_lock_beats(state: State, impatient: None) -> None:
    held_elsewhere(state)
    assert not is_held(state, "space")  # who knows
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.05):
            with state.write() as connection:
                connection.execute(update(leases).values(beat=leases.c.beat + 1))

    beating = threading.Thread(target=beat)
    beating.start()
    assert refused(state) == "theirs"
    stop.set()
    beating.join()


def test_a_holder_elsewhere_whose_lock_stands_still_is_gone(state: State, impatient: None) -> None:
    held_elsewhere(state)
    with night_lock(state, "space", "mine", lost):
        assert refused(state) == "mine"


class LateBeat(State):
    """A state in which the other holder beats just before anything is written."""

    def write(self) -> AbstractContextManager[Connection]:
        with super().write() as connection:
            connection.execute(update(leases).values(beat=leases.c.beat + 1))
        return super().write()


def test_a_holder_that_beats_in_the_last_moment_keeps_its_lock(
    state: State, state_url: str, impatient: None
) -> None:
    held_elsewhere(state)
    with LateBeat(state_url) as mine:
        assert refused(mine) == "theirs"


def test_of_many_that_find_the_holder_gone_one_takes_the_lock(state: State, impatient: None) -> None:
    held_elsewhere(state)
    took, done = [], threading.Barrier(4)

    def take() -> None:
        try:
            with night_lock(state, "space", "mine", lost):
                took.append(True)
                done.wait(30)
        except NightBusyError:
            done.wait(30)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert took == [True]


def test_a_holder_learns_that_another_has_taken_its_lock(state: State, impatient: None) -> None:
    told = threading.Event()
    with night_lock(state, "space", "mine", told.set):
        with state.write() as connection:
            connection.execute(update(leases).values(night="theirs", holder=ELSEWHERE))
        assert told.wait(30)
    with state.read() as connection:
        assert connection.execute(leases.select()).one().night == "theirs"


def test_a_lock_beats_while_it_is_held(state: State, impatient: None) -> None:
    with night_lock(state, "space", "mine", lost):
        deadline = time.monotonic() + 30
        while True:
            with state.read() as connection:
                if connection.execute(leases.select()).one().beat >= 3:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.02)
