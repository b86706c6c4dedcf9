"""Nights over HTTP: watched as they go, by whoever and through whichever gateway, and ended early."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memory.database import StateUnavailableError
from memory.night import NightLog, NightRecord
from memory.tenants import partition
from server.api import consolidations
from tests.postgres_server import PostgresServer
from tests.server.api.conftest import Serve, Served


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consolidations, "LOOK_S", 0.01)


def log_of(served: Served) -> NightLog:
    return NightLog(served.gateway.state)


def queued(served: Served) -> NightRecord:
    return log_of(served).create(served.engine.space.id, "api")


def ended(log: NightLog, space: str) -> NightRecord:
    return log.update(replace(log.create(space, "api"), state="skipped"))


def read(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and the record of each event."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


@pytest.fixture
async def two(serve: Serve, tmp_path: Path, postgres: PostgresServer) -> list[Served]:
    """Two gateways on one database."""
    state_url = postgres.database()
    return [await serve(data_dir=tmp_path / name, state_url=state_url) for name in ("one", "other")]


async def test_a_night_is_watched_to_its_end_through_any_gateway(two: list[Served]) -> None:
    one, other = two
    night, log = queued(one), log_of(one)
    path = f"/v1/consolidations/{night.id}/events"
    watching = [asyncio.create_task(served.http.get(path)) for served in (one, other)]
    steps: list[dict[str, Any]] = [
        {"state": "running", "phase": "load"},
        {"phase": "train", "done": 3, "total": 60, "message": "loss 2"},
        {"phase": "evidence", "done": 0, "total": 1},
        {"state": "on trial", "version": "v1", "evidence": {"clusters": [{"row": 0}]}},
    ]
    for step in steps:
        await asyncio.sleep(0.1)
        night = log.update(replace(night, **step))
    for answer in await asyncio.gather(*watching):
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = read(answer.text)
        assert [name for name, _ in events] == ["progress"] * (len(events) - 1) + ["end"]
        assert events[0][1]["state"] == "queued", "the present state comes first"
        assert ("train", 3, 60) in [(one["phase"], one["done"], one["total"]) for _, one in events]
        assert events[-1][1]["evidence"] == {"clusters": [{"row": 0}]}
        assert (events[-1][1]["state"], events[-1][1]["version"]) == ("on trial", "v1")


async def test_a_sign_of_life_is_no_event(served: Served) -> None:
    night, log = queued(served), log_of(served)
    watching = asyncio.create_task(served.http.get(f"/v1/consolidations/{night.id}/events"))
    for _ in range(10):
        await asyncio.sleep(0.02)
        log.update(night)
    log.cancel(night.id)
    events = read((await watching).text)
    assert [one["state"] for _, one in events] == ["queued", "cancelled"]


async def test_a_night_that_has_ended_says_so_once(served: Served) -> None:
    night = queued(served)
    log_of(served).cancel(night.id)
    path = f"/v1/consolidations/{night.id}/events"
    answer = await served.http.get(path)
    [(name, record)] = read(answer.text)
    assert (name, record["state"]) == ("end", "cancelled")
    last = next(line for line in answer.text.splitlines() if line.startswith("id: ")).removeprefix("id: ")
    again = await served.http.get(path, headers={"last-event-id": last})
    assert (again.status_code, again.content) == (204, b"")
    other = await served.http.get(path, headers={"last-event-id": "something else"})
    assert other.status_code == 200
    assert (await served.http.head(path)).content == b""


async def test_while_the_state_does_not_answer_nothing_comes_and_then_it_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    night, failed = queued(served), 0
    nights = served.gateway.nights
    get = nights.get

    async def away(night_id: str) -> NightRecord | None:
        nonlocal failed
        if failed < 3:
            failed += 1
            raise StateUnavailableError("no answer")
        log_of(served).cancel(night_id)
        monkeypatch.setattr(nights, "get", get)
        return await get(night_id)

    monkeypatch.setattr(nights, "get", away)
    seen = [event async for event in consolidations.watched(served.gateway, night)]
    assert (failed, [event.event for event in seen]) == (3, ["progress", "end"])


async def test_who_goes_away_is_looked_for_no_longer(served: Served) -> None:
    night = queued(served)
    gone = asyncio.Event()
    messages: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not messages:
            return {"type": "http.request", "body": b"", "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        messages.append(message)
        if message.get("body"):
            gone.set()

    path = f"/v1/consolidations/{night.id}/events"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("gateway", 80),
    }
    await asyncio.wait_for(served.app(scope, receive, send), 30)
    assert any(b"progress" in message.get("body", b"") for message in messages)


async def test_a_night_is_cancelled_through_another_gateway(two: list[Served]) -> None:
    one, other = two
    night = queued(one)
    answer = await other.http.post(f"/v1/consolidations/{night.id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert (await one.http.get(f"/v1/consolidations/{night.id}")).json() == answer.json()
    again = await one.http.post(f"/v1/consolidations/{night.id}/cancel")
    assert again.status_code == 409
    assert "has ended as cancelled" in again.json()["error"]["message"]
    for unknown in ("00000000-0000-4000-8000-000000000000", "nobody"):
        for method, route in (("POST", "cancel"), ("GET", "events")):
            found = await one.http.request(method, f"/v1/consolidations/{unknown}/{route}")
            assert (found.status_code, found.json()["error"]["param"]) == (404, "night_id")


async def test_nights_are_listed_page_by_page_each_once_whatever_comes_meanwhile(two: list[Served]) -> None:
    served, _ = two
    log, shown = log_of(served), []
    ids = [ended(log, served.gateway.space).id for _ in range(5)]
    ended(log, partition(served.gateway.space, "another"))
    path = "/v1/consolidations"
    page = (await served.http.get(path, params={"limit": 2})).json()
    queued(served)
    while True:
        assert page["object"] == "list"
        shown += [night["id"] for night in page["data"]]
        assert page["has_more"] == (page["next_cursor"] is not None)
        if not page["has_more"]:
            break
        page = (await served.http.get(path, params={"limit": 2, "cursor": page["next_cursor"]})).json()
    assert shown == ids[::-1]
    for wrong in ({"limit": "0"}, {"limit": "101"}, {"cursor": "nonsense"}, {"page": "2"}):
        assert (await served.http.get(path, params=wrong)).status_code == 400, wrong
