"""What is remembered as a file: out of one server and into another."""

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from memory.episode import Episode, StoreUnavailableError
from tests.server.api.conftest import Serve, Served
from tests.server.api.test_memory_routes import fill

EXPORT, IMPORT = "/v1/memory/export", "/v1/memory/import"


async def test_what_one_server_exports_another_imports_and_both_count_the_same(
    serve: Serve, tmp_path: Path
) -> None:
    one, other = await serve(data_dir=tmp_path / "one"), await serve(data_dir=tmp_path / "other")
    await fill(one, 7)
    exported = await one.http.get(EXPORT)
    assert exported.headers["content-type"] == "application/x-tar"
    assert one.gateway.space in exported.headers["content-disposition"]
    with tarfile.open(fileobj=io.BytesIO(exported.content)) as tar:
        end = json.load(tar.extractfile("end.json"))  # type: ignore[arg-type]

    async def sent() -> AsyncIterator[bytes]:
        for at in range(0, len(exported.content), 1000):
            yield exported.content[at : at + 1000]

    for expected in ({"added": 7, "skipped": 0}, {"added": 0, "skipped": 7}):
        answer = await other.http.post(IMPORT, content=sent())
        assert answer.json() == expected | {"episodes": 7}
    counts = [
        (await each.http.get("/v1/memory/stats")).json()["spaces"][each.gateway.space]
        for each in (one, other)
    ]
    assert counts[0] == counts[1]
    assert end["episodes"] == counts[0]["episodes"] == 7
    assert (await other.http.get(EXPORT)).content == exported.content


async def test_an_archive_that_cannot_be_taken_is_refused_by_its_reason(served: Served) -> None:
    await fill(served, 3)
    whole = (await served.http.get(EXPORT)).content
    await served.http.delete("/v1/memory/episodes?all=true")
    space = served.gateway.space.encode()
    other = await served.http.post(IMPORT, content=whole.replace(space, b"f" * len(space)))
    assert other.status_code == 409
    error = other.json()["error"]
    assert error["param"] == "space"
    assert "f" * len(space) in error["message"]
    assert served.gateway.space in error["message"]
    for content, reason in ((b"", "no archive"), (whole[:3000], "cut off"), (b"{}" * 999, "no archive")):
        answer = await served.http.post(IMPORT, content=content)
        assert answer.status_code == 400
        assert reason in answer.json()["error"]["message"]
        assert "0 episodes were taken" in answer.json()["error"]["message"]
    assert served.gateway.store.count() == 0


async def test_a_full_disk_says_what_was_taken(serve: Serve, tmp_path: Path) -> None:
    one = await serve(data_dir=tmp_path / "one")
    await fill(one, 3)
    whole = (await one.http.get(EXPORT)).content
    full = await serve(data_dir=tmp_path / "full", min_free_mib=2**40)
    answer = await full.http.post(IMPORT, content=whole)
    assert answer.status_code in (503, 507)
    assert "0 episodes were taken" in answer.json()["error"]["message"]


async def test_an_export_of_a_store_that_is_away_is_refused_and_one_that_breaks_has_no_end(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(served, 2)
    store = served.gateway.store
    first = await asyncio.to_thread(lambda: next(store.scroll()))

    def breaks(**_: Any) -> Iterator[Episode]:
        yield first
        raise StoreUnavailableError("gone")

    monkeypatch.setattr(store, "scroll", breaks)
    broken = (await served.http.get(EXPORT)).content
    assert b"manifest.json" in broken
    assert b"end.json" not in broken
    monkeypatch.setattr(store, "count", lambda **_: (_ for _ in ()).throw(StoreUnavailableError("away")))
    assert (await served.http.get(EXPORT)).status_code == 503


async def test_asking_for_the_head_of_an_export_reads_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.gateway.store, "scroll", lambda **_: pytest.fail("read"))
    answer = await served.http.head(EXPORT)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "application/x-tar"
