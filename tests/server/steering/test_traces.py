"""Traces: found at once, kept on disk, bounded, and settled when the episode is."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memory.episode import new_id
from server.steering.call import Outcome, SteeringOptions
from server.steering.trace import Trace
from server.steering.traces import TraceLog
from tests.memory.full_disk import Disk
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
    return Trace(new_id(), "space", SteeringOptions("low"), outcome, remembered="pending")


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[TraceLog]:
    made = TraceLog(tmp_path / "traces", limit=4)
    await made.start()
    yield made
    await made.close()


async def test_trace_is_the_same_before_and_after_it_is_written(log: TraceLog, tmp_path: Path) -> None:
    one = trace(LATENT)
    log.record(one)
    fresh = await log.get(one.id, include_latent=True)
    assert list((tmp_path / "traces").iterdir()) == []
    assert await log.drain()
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

    def interleaved(trace_id: str, include_latent: bool):
        if not include_latent:  # the writer comes between this reading and its end
            was_read.wait(5)
            return read(trace_id, include_latent)
        found = read(trace_id, include_latent)
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
    again = TraceLog(tmp_path / "traces", limit=4)
    await again.start()
    assert (await again.get(one.id, include_latent=True))["latent"]["values"] == LATENT.tolist()
    await again.close()


async def test_full_disk_loses_traces_and_counts_them_until_there_is_room(tmp_path: Path) -> None:
    disk = Disk()
    log = TraceLog(tmp_path / "traces", limit=2, room=disk)
    await log.start()
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
    assert {path.stem for path in (tmp_path / "traces").iterdir()} == {one.id for one in old}
    disk.free_mib = 100
    new = trace(LATENT)
    log.record(new)
    assert await log.drain()
    assert {path.stem for path in (tmp_path / "traces").glob("*.json")} == {old[1].id, new.id}
    await log.close()


ID = "3db36683-f68b-4460-b921-03fcc0967781"


@pytest.mark.parametrize("unknown", ["", "..", "../traces/x", "abc", "A" * 36, ID.upper(), ID])
async def test_only_ids_of_traces_are_looked_up(log: TraceLog, tmp_path: Path, unknown: str) -> None:
    (tmp_path / "abc.json").write_text("{}")
    assert await log.get(unknown) is None


async def test_oldest_traces_go_first_also_those_of_an_earlier_process(log: TraceLog, tmp_path: Path) -> None:
    first = [trace(LATENT) for _ in range(3)]
    for one in first:
        log.record(one)
        assert await log.drain()
    await log.close()
    again = TraceLog(tmp_path / "traces", limit=4)
    await again.start()
    second = [trace(LATENT) for _ in range(3)]
    for one in second:
        again.record(one)
    assert await again.drain()
    kept = {path.stem for path in (tmp_path / "traces").glob("*.json")}
    assert kept == {one.id for one in [first[2], *second]}
    assert kept == {path.stem for path in (tmp_path / "traces").glob("*.safetensors")}
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


async def test_damaged_file_is_no_trace(log: TraceLog, tmp_path: Path) -> None:
    one = trace(LATENT)
    log.record(one)
    assert await log.drain()
    (tmp_path / "traces" / f"{one.id}.json").write_text('{"id": ')
    assert await log.get(one.id) is None


async def test_disk_that_takes_nothing_loses_traces_but_not_the_log(tmp_path: Path) -> None:
    log = TraceLog(tmp_path / "traces", limit=4)
    await log.start()
    (tmp_path / "traces").rmdir()
    (tmp_path / "traces").write_text("a file where the folder was")
    log.record(trace(LATENT))
    assert await log.drain()
    assert log.lost == 1
    (tmp_path / "traces").unlink()
    (tmp_path / "traces").mkdir()
    one = trace(LATENT)
    log.record(one)
    assert await log.drain()
    assert json.loads((tmp_path / "traces" / f"{one.id}.json").read_text())["id"] == one.id
    await log.close()
