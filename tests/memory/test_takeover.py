"""What earlier builds kept in files is taken over at the first start, and what is not is told."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from config.settings import Settings
from memory.night import NightLog
from memory.registry import PriorRegistry
from memory.schema import labels
from memory.state import NewTrace, State

NIGHT = {
    "id": "0a1b",
    "space": "space-a",
    "trigger": "schedule",
    "created_at": "2026-11-26T03:00:04.250000+00:00",
    "updated_at": "2026-11-26T03:09:00+00:00",
    "scheduled_for": "2026-11-26T03:00:00+00:00",
    "state": "promoted",
    "phase": "publish",
    "done": 1,
    "total": 1,
    "message": "better than all controls",
    "episodes": 72,
    "version": "v2",
    "parent": "v1",
    "gate": {"promoted": True, "table": [{"control": "mean", "value": 0.25}]},
    "error": None,
    "started_at": "2026-11-26T03:00:05+00:00",
    "finished_at": "2026-11-26T03:09:00+00:00",
}

TRACES = [f"0000000{9 - number}-0000-4000-8000-000000000000" for number in range(5)]
"""Ids of traces, oldest first."""


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder as an earlier build left it."""
    write(tmp_path / "nights" / "0a1b.json", NIGHT)
    running = NIGHT | {"id": "2c3d", "state": "running", "phase": "train", "version": None, "gate": None}
    running |= {"finished_at": None, "created_at": "2026-11-27T03:00:00+00:00"}
    write(tmp_path / "nights" / "2c3d.json", running)
    write(tmp_path / "nights" / "2c3d" / "attempts.json", {"attempts": 2, "reached": 20})
    write(tmp_path / "nights" / "2c3d" / "checkpoint.safetensors", "weights")
    write(tmp_path / "nights" / "lock", "")
    pointer = {
        "version": "v2",
        "space": "space-a",
        "activated_at": "2026-11-26T03:09:00+00:00",
        "pinned": True,
    }
    write(tmp_path / "priors" / "space-a" / "active.json", pointer)
    write(tmp_path / "priors" / "space-a" / "last.json", {"version": "v7"})
    write(tmp_path / "priors" / "space-a" / "lock", "")
    write(tmp_path / "priors" / "space-b" / "active.json", {"version": None, "pinned": False})
    since = {"cron": "0 3 * * *", "since": "2026-11-01T12:00:00+00:00"}
    write(tmp_path / "schedule" / "space-a.json", since)
    for number, name in enumerate(TRACES):
        latent = {"latent": {"shape": [1, 2], "norm": 1.0}} if number % 2 else {"latent": None}
        write(tmp_path / "traces" / f"{name}.json", {"id": name, "reason": f"{number}"} | latent)
        os.utime(tmp_path / "traces" / f"{name}.json", (number, number))
        if number % 2:
            write(tmp_path / "traces" / f"{name}.safetensors", f"latent {number}")
    return tmp_path


def opened(folder: Path, url: str) -> State:
    url = url if url.startswith("postgresql") else "none"
    return State.open(Settings(data_dir=folder, state_url=url, trace_limit=3, _env_file=None))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
        "state.db",
        "state.db-wal",
        "state.db-shm",
    }


def test_nights_are_taken_over(folder: Path, state_url: str) -> None:
    with opened(folder, state_url) as state:
        log = NightLog(state)
        assert [night.id for night in log.list()] == ["2c3d", "0a1b"]
        found = log.get("0a1b")
        assert found is not None
        gate = NIGHT["gate"]
        assert found.to_json() == {k: v for k, v in NIGHT.items() if k != "gate"} | {
            "evidence": {"gate": gate}
        }
        running = log.running("space-a")
        assert running is not None
        assert running.id == "2c3d"
        assert log.attempt("2c3d", 20) == 3


def test_labels_and_numbers_are_taken_over(folder: Path, state_url: str) -> None:
    with opened(folder, state_url) as state:
        a, b = (PriorRegistry(folder / "priors", space, state) for space in ("space-a", "space-b"))
        assert (a.active(), a.pinned()) == ("v2", True)
        assert (b.active(), b.pinned()) == (None, False)
        with state.read() as connection:
            assert connection.scalar(select(labels.c.last_number).filter_by(space="space-a")) == 7


def test_the_schedule_goes_on(folder: Path, state_url: str) -> None:
    with opened(folder, state_url) as state:
        found = NightLog(state).list()[0].created_at
        assert state.follow("space-a", "0 3 * * *", found).isoformat() == "2026-11-01T12:00:00+00:00"


def test_the_newest_traces_are_taken_over(folder: Path, state_url: str) -> None:
    with opened(folder, state_url) as state:
        found = [state.trace(name, latent=True) for name in TRACES]
        assert found[:2] == [None, None]
        assert [(trace[0]["reason"], trace[1]) for trace in found[2:] if trace] == [
            ("2", None),
            ("3", b"latent 3"),
            ("4", None),
        ]
        new = "11111111-0000-4000-8000-000000000000"
        state.write_traces([NewTrace(new, {"id": new})], {}, 3)
        assert [state.trace(name, latent=False) is None for name in (*TRACES[2:], new)] == [
            True,
            False,
            False,
            False,
        ]


def test_traces_for_which_there_is_no_room_wait_for_the_next_start(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=folder, min_free_mib=2**40, _env_file=None)
    with State.open(settings) as state:
        assert len(NightLog(state).list()) == 2
        assert state.trace(TRACES[4], latent=False) is None
    assert "are left behind until the next start" in caplog.text
    with opened(folder, "sqlite") as state:
        assert state.trace(TRACES[4], latent=False) is not None


def test_files_that_were_taken_are_gone_and_the_next_start_changes_nothing(
    folder: Path, state_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    opened(folder, state_url).close()
    assert (
        "taken over from files of an earlier build: 2 nights, 2 labels of priors, 1 schedules, 3 traces"
        in caplog.text
    )
    assert files(folder) == {"nights/2c3d/checkpoint.safetensors"}
    caplog.clear()
    with opened(folder, state_url) as state:
        assert len(NightLog(state).list()) == 2
    assert caplog.text == ""


def test_what_the_state_knows_is_not_written_over_by_older_files(folder: Path, state_url: str) -> None:
    before = {path: path.read_text() for path in (folder / "nights").glob("*.json")}
    before |= {path: path.read_text() for path in (folder / "priors").glob("*/*.json")}
    with opened(folder, state_url) as state:
        PriorRegistry(folder / "priors", "space-a", state).activate(None)
        NightLog(state).update(NightLog(state).list()[0])
        changed = NightLog(state).list()
    for path, content in before.items():  # its start died before it had deleted them
        write(path, content)
    with opened(folder, state_url) as state:
        assert PriorRegistry(folder / "priors", "space-a", state).active() is None
        assert NightLog(state).list() == changed
    assert files(folder) == {"nights/2c3d/checkpoint.safetensors"}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "\0" * 300, json.dumps(NIGHT)[:200], '{"id": "5e6f"}']
    + [
        json.dumps(NIGHT | {"id": "5e6f"} | change)
        for change in (
            {"id": "other"},
            {"created_at": None},
            {"created_at": 7},
            {"created_at": "2026-11-27T03:00:00"},
            {"state": "asleep"},
            {"trigger": None},
        )
    ],
)
def test_what_cannot_be_read_stays_and_is_told(
    folder: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder / "nights" / "5e6f.json", content)
    with opened(folder, "sqlite") as state:
        assert len(NightLog(state).list()) == 2
    assert "5e6f.json is left behind" in caplog.text
    assert (folder / "nights" / "5e6f.json").read_text() == content


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 3}', "{}x"])
def test_a_spoilt_pointer_stays_and_is_told(
    folder: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder / "priors" / "space-a" / "active.json", content)
    with opened(folder, "sqlite") as state:
        assert PriorRegistry(folder / "priors", "space-a", state).active() is None
    assert "space-a is left behind" in caplog.text
    assert "priors/space-a/active.json" in files(folder)
