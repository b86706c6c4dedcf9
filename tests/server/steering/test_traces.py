"""Traces: found at once, kept in the state, bounded, and settled when the episode is."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select, text, update

from memory.episode import new_id
from memory.schema import traces
from memory.state import State
from server.steering.outcome import Outcome, Trace
from server.steering.traces import TraceLog
from tests.memory.full_disk import Disk
from tests.server.steering.fakes import options
from tests.server.steering.test_remember import episode

LATENT = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def trace(latent: torch.Tensor | None = None) -> Trace:
    outcome = Outcome(
        mode="recall" if latent is not None else "plain",
        reason="recalled",
        latent=latent,
        episode_ids=("e1",),
        similarities=(0.8,),
    )
    return Trace(new_id(), "space", options("low"), outcome, remembered="pending")


@pytest.fixture
async def log(state: State) -> AsyncIterator[TraceLog]:
    made = TraceLog(state, limit=4)
    made.start()
    yield made
    await made.close()


def kept(state: State) -> list[str]:
    """Return the ids of the traces in the state, oldest first."""
    with state.read() as connection:
        return list(connection.scalars(select(traces.c.id).order_by(traces.c.number)))


async def test_trace_is_the_same_before_and_after_it_is_written(log: TraceLog, state: State) -> None:
    one = trace(LATENT)
    log.record(one)
    fresh = await log.get(one.id, include_latent=True)
    assert kept(state) == []
    assert await log.drain()
    assert kept(state) == [one.id]
    written = await log.get(one.id, include_latent=True)
    assert fresh == written
    assert written["latent"] == {"shape": [2, 3], "norm": float(LATENT.norm()), "values": LATENT.tolist()}
    assert written["episodes"] == [{"id": "e1", "similarity": 0.8}]
    assert "values" not in (await log.get(one.id))["latent"]


async def test_trace_without_latent_has_none(log: TraceLog) -> None:
    one = trace()
    log.record(one)
    assert await log.drain()
    assert (await log.get(one.id, include_latent=True))["latent"] is None


async def test_change_written_while_the_trace_is_read_is_seen(
    log: TraceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trace(LATENT)
    log.record(one)
    assert await log.drain()
    read, was_read, written = log._read, threading.Event(), threading.Event()

    def interleaved(trace_id: str, include_latent: bool, tenant: str):
        if not include_latent:  # the writer comes between this reading and its end
            was_read.wait(5)
            return read(trace_id, include_latent, tenant)
        found = read(trace_id, include_latent, tenant)
        was_read.set()
        written.wait(5)
        return found

    monkeypatch.setattr(log, "_read", interleaved)
    log.change(one.id, {"remembered": "stored"})
    getting = asyncio.create_task(log.get(one.id, include_latent=True))
    assert await log.drain()
    written.set()
    assert (await getting)["remembered"] == "stored"


async def test_traces_survive_the_process(log: TraceLog, tmp_path: Path) -> None:
    one = trace(LATENT)
    log.record(one)
    await log.close()
    with State.in_folder(tmp_path) as other_process:
        again = TraceLog(other_process, limit=4)
        assert (await again.get(one.id, include_latent=True))["latent"]["values"] == LATENT.tolist()


async def test_full_disk_loses_traces_and_counts_them_until_there_is_room(tmp_path: Path) -> None:
    disk = Disk()
    with State.in_folder(tmp_path, disk) as state:
        log = TraceLog(state, limit=2)
        log.start()
        old = [trace() for _ in range(2)]
        for one in old:
            log.record(one)
            assert await log.drain()
        disk.free_mib = 99
        for _ in range(2):
            log.record(trace(LATENT))
            assert await log.drain()
        assert log.lost == 2
        # What was never written takes no place of what was, neither now nor later.
        assert kept(state) == [one.id for one in old]
        disk.free_mib = 100
        new = trace(LATENT)
        log.record(new)
        assert await log.drain()
        assert kept(state) == [old[1].id, new.id]
        await log.close()


ID = "3db36683-f68b-4460-b921-03fcc0967781"


@pytest.mark.parametrize("unknown", ["", "..", "../traces/x", "abc", "A" * 36, ID.upper(), ID])
async def test_only_ids_of_traces_are_looked_up(log: TraceLog, unknown: str) -> None:
    assert await log.get(unknown) is None


async def test_oldest_traces_go_first_also_those_of_an_earlier_process(log: TraceLog, state: State) -> None:
    first = [trace(LATENT) for _ in range(3)]
    for one in first:
        log.record(one)
        assert await log.drain()
    await log.close()
    again = TraceLog(state, limit=4)
    again.start()
    second = [trace(LATENT) for _ in range(3)]
    for one in second:
        again.record(one)
    assert await again.drain()
    assert kept(state) == [one.id for one in [first[2], *second]]
    await again.close()


@pytest.mark.parametrize("written_first", [True, False])
@pytest.mark.parametrize("fate", ["stored", "failed", "dropped"])
async def test_fate_of_the_episode_reaches_its_trace(log: TraceLog, written_first: bool, fate: str) -> None:
    one = trace(LATENT)
    log.record(one)
    if written_first:
        assert await log.drain()
    log.settle(replace(episode(0), trace_id=one.id), fate)
    at_once = await log.get(one.id)
    assert await log.drain()
    later = await log.get(one.id)
    assert at_once == later
    assert later["remembered"] == fate
    assert bool(later["why_not_remembered"]) == (fate != "stored")


@pytest.mark.parametrize("spoilt", [{"content": text("'{'")}, {"latent": b"no latent"}])
async def test_damaged_trace_is_none(log: TraceLog, state: State, spoilt: dict[str, Any]) -> None:
    one = trace(LATENT)
    log.record(one)
    assert await log.drain()
    with state.write() as connection:
        connection.execute(update(traces).values(spoilt))
    assert await log.get(one.id, include_latent=True) is None


async def test_trace_that_is_no_json_is_lost_alone(log: TraceLog, state: State) -> None:
    whole = [trace(), trace(LATENT)]
    odd = trace()
    odd = replace(odd, outcome=replace(odd.outcome, reward_after=float("nan")))
    for one in (whole[0], odd, whole[1]):
        log.record(one)
    assert await log.drain()
    assert kept(state) == [one.id for one in whole]
    assert log.lost == 1


async def test_state_that_cannot_be_written_loses_traces_but_not_the_log(
    log: TraceLog, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    rename(state, "traces", "gone")
    for _ in range(2):
        log.record(trace(LATENT))
        assert await log.drain()
    assert log.lost == 2
    assert caplog.text.count("no traces until") == 1
    rename(state, "gone", "traces")
    one = trace(LATENT)
    log.record(one)
    assert await log.drain()
    assert kept(state) == [one.id]


def rename(state: State, old: str, new: str) -> None:
    with state.write() as connection:
        connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
