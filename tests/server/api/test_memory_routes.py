"""The routes under /v1/memory: lists, filters, forgetting."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from memory import archive
from memory.archive import ArchiveError
from memory.episode import Episode, StoreUnavailableError, now, prompt_digest
from server.archive import exported
from tests.server.api.conftest import Serve, Served
from tests.tables import row

START = datetime(2026, 3, 1, tzinfo=UTC)
NOTHING_ELSE = {"priors": [], "night": None, "next": None}


def episode_of(served: Served, number: int, **fields: Any) -> Episode:
    """Return an episode of the served space; the key, of norm 1, fits the number."""
    length, hidden_size = served.engine.space.shape
    key = np.random.default_rng(number).normal(size=hidden_size).astype(np.float32)
    values: dict[str, Any] = {
        "space": served.gateway.space,
        "key": (key / np.linalg.norm(key)).astype(np.float32),
        "latent": np.full((length, hidden_size), number, np.float32),
        "reward": number % 5 / 4,
        "signals": {"consistency": 1.0},
        "prompt_token_ids": (1, number),
        "answer_token_ids": (2,),
        "prompt_text": f"question {number}",
        "answer_text": f"answer {number}",
        "created_at": START + timedelta(hours=number // 2),
    }
    return Episode(**(values | fields))


async def fill(served: Served, count: int) -> list[Episode]:
    """Remember so many episodes."""
    episodes = [episode_of(served, number) for number in range(count)]
    await asyncio.to_thread(served.gateway.store.add, episodes)
    return episodes


async def test_episodes_are_listed_page_by_page_newest_first(served: Served) -> None:
    episodes = await fill(served, 11)
    shown: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    for _ in range(4):
        page = (await served.http.get("/v1/memory/episodes", params={"limit": "3", **cursor})).json()
        shown += page["data"]
        assert page["has_more"] == (page["next_cursor"] is not None) == (len(shown) < 11)
        cursor = {"cursor": page["next_cursor"]}
    newest = sorted(episodes, key=lambda one: (one.created_at, one.id), reverse=True)
    assert [one["id"] for one in shown] == [one.id for one in newest]
    whole = (await served.http.get(f"/v1/memory/episodes/{newest[0].id}")).json()
    asked = served.engine.decode(newest[0].prompt_token_ids).strip()
    assert whole == newest[0].summary() | {"question": asked}
    left_out = {"prompt_token_ids", "answer_token_ids"}
    assert shown[0] == {name: value for name, value in whole.items() if name not in left_out}


async def test_filters_choose_what_is_listed_and_what_is_forgotten(served: Served) -> None:
    episodes = await fill(served, 10)
    asked = {"reward_max": "0.5", "since": "2026-03-01T02:00:00Z", "until": "2026-03-01T04:00:00"}
    meant = {one.id for one in episodes[4:8] if one.reward <= 0.5}
    listed = (await served.http.get("/v1/memory/episodes", params=asked)).json()["data"]
    assert {one["id"] for one in listed} == meant
    answer = await served.http.delete("/v1/memory/episodes", params=asked)
    assert answer.json() == NOTHING_ELSE | {"deleted": len(meant)}
    left = (await served.http.get("/v1/memory/episodes", params={"limit": 100})).json()["data"]
    assert {one["id"] for one in left} == {one.id for one in episodes} - meant
    assert (await served.http.delete("/v1/memory/episodes", params=asked)).json()["deleted"] == 0
    assert (await served.http.delete("/v1/memory/episodes?all=true")).json()["deleted"] == 10 - len(meant)
    assert (await served.http.get("/v1/memory/episodes")).json() == {
        "object": "list",
        "data": [],
        "has_more": False,
        "next_cursor": None,
    }


async def test_a_cluster_is_what_a_row_of_the_active_prior_covers(served: Served) -> None:
    episodes = await fill(served, 30)
    latent = served.engine.neutral_latent()
    rows = [
        row(latent, episodes[0].key[None], 0.9),
        row(latent, np.stack([e.key for e in episodes[4:9]]), 0.9),
    ]
    version = served.gateway.registry.publish(rows, {})
    unknown = await served.http.get(f"/v1/memory/episodes?cluster={version}/1")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "cluster")
    served.gateway.registry.activate(version)
    await served.gateway.prior.refresh()
    known = (await served.http.get("/v1/memory/stats")).json()["prior"]["rows"]
    assert set(known) == {f"{version}/0", f"{version}/1"}

    async def listed(**asked: str) -> set[str]:
        shown: set[str] = set()
        cursor: dict[str, str] = {}
        while True:
            page = (
                await served.http.get("/v1/memory/episodes", params={"limit": 2, **asked, **cursor})
            ).json()
            shown |= {one["id"] for one in page["data"]}
            if not page["has_more"]:
                return shown
            cursor = {"cursor": page["next_cursor"]}

    meant = {one.id for one in episodes[4:9]}
    assert await listed(cluster=f"{version}/0") == {episodes[0].id}
    assert await listed(cluster=f"{version}/1") == meant
    good = {one.id for one in episodes[4:9] if one.reward >= 0.5}
    assert await listed(cluster=f"{version}/1", reward_min="0.5") == good
    missing = await served.http.delete(f"/v1/memory/episodes?cluster={version}/2")
    assert missing.status_code == 400
    assert f"{version}/1" in missing.json()["error"]["message"]
    gone = await served.http.delete(f"/v1/memory/episodes?cluster={version}/1")
    assert gone.json()["deleted"] == len(meant)
    assert await listed() == {one.id for one in episodes} - meant


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("", "all"),
        ("all=false", "all"),
        ("all=true&effort=low", "all"),
        ("rewardmax=0.3", "rewardmax"),
        ("reward_max=nan", "reward_max"),
        ("since=yesterday", "since"),
        ("since=15", "since"),
        ("until=0001-01-01", "until"),
    ],
)
async def test_nothing_is_forgotten_that_was_not_named(served: Served, query: str, param: str) -> None:
    await fill(served, 2)
    answer = await served.http.delete(f"/v1/memory/episodes?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert served.gateway.store.count() == 2


@pytest.mark.parametrize("query", ["cursor=x", "limit=0", "limit=101", "cluster=v1/0"])
async def test_a_list_that_cannot_be_is_refused_by_name(served: Served, query: str) -> None:
    answer = await served.http.get(f"/v1/memory/episodes?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


async def test_what_waits_to_be_written_is_forgotten_too(served: Served) -> None:
    gateway = served.gateway
    assert gateway.remember.submit(episode_of(served, 0, id=str(uuid4())))
    answer = await served.http.delete("/v1/memory/episodes?all=true")
    assert answer.json()["deleted"] == 1
    assert await gateway.remember.drain()
    assert gateway.store.count() == 0


async def test_text_finds_the_episodes_of_requests_like_it(served: Served) -> None:
    for question in ("sum two and two", "sum three and two", "paint a house"):
        await served.chat(question, latent={"effort": "high"})
    await served.gateway.remember.drain()

    async def found(**asked: Any) -> list[tuple[str, float]]:
        answer = await served.http.post("/v1/memory/search", json=asked)
        assert answer.status_code == 200
        return [(one["episode"]["prompt_text"], one["similarity"]) for one in answer.json()["data"]]

    first, second, third = await found(text="sum two and two")
    assert "sum two and two" in first[0]
    assert first[1] == pytest.approx(1, abs=1e-5)
    assert "sum three" in second[0]
    assert "paint" in third[0]
    assert first[1] > second[1] > third[1]
    assert await found(text="sum two and two", floor=0.5) == [first, second]
    assert await found(text="sum two and two", k=1) == [first]

    own = (await served.http.post("/v1/memory/search", json={"text": "sum two and two", "k": 1})).json()
    name = own["data"][0]["episode"]["id"]
    assert [text for text, _ in await found(id=name, k=1)] == [second[0]]
    assert [text for text, _ in await found(id=name)] == [second[0], third[0]]


async def test_a_body_that_is_no_json_is_refused_as_the_body(served: Served) -> None:
    headers = {"content-type": "application/json"}
    answer = await served.http.post("/v1/memory/search", content='{"text": "a"', headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "body")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "text"),
        ({"text": "a", "id": str(uuid4())}, 400, "text"),
        ({"text": ""}, 400, "text"),
        ({"text": "a" * 9000}, 400, "text"),
        ({"text": "a", "k": 0}, 400, "k"),
        ({"text": "a", "floor": 2}, 400, "floor"),
        ({"text": "a", "key": [1.0]}, 400, "key"),
        ({"id": "no-uuid"}, 404, "id"),
        ({"id": str(uuid4())}, 404, "id"),
    ],
)
async def test_a_search_that_cannot_be_is_refused_by_name(
    served: Served, body: dict[str, Any], status: int, param: str
) -> None:
    answer = await served.http.post("/v1/memory/search", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


async def test_what_is_forgotten_is_told_with_the_priors_that_were_trained_on_it(served: Served) -> None:
    first, second, third, other = await fill(served, 4)
    space = served.engine.space
    digest = {one.id: prompt_digest(one.prompt_token_ids) for one in (first, second, third)}
    made = row(served.engine.neutral_latent(), np.eye(1, space.hidden_size), 0.9)
    registry = served.gateway.registry
    for learned in (
        {"0": [digest[first.id]]},
        {"v1/0": [digest[first.id]], "0": [digest[second.id]]},
        {"0": [digest[third.id]]},
    ):
        registry.publish([made] * len(learned), {"learned": learned, "labels": [], "trainings": []})
    registry.activate("v2")

    answer = (await served.http.delete(f"/v1/memory/episodes/{first.id}")).json()
    assert answer["priors"] == [
        {"version": "v1", "rows": ["v1/0"], "active": False},
        {"version": "v2", "rows": ["v1/0"], "active": True},
    ]
    assert "/v1/consolidations" in answer["next"]
    planned = (await served.http.get("/v1/schedule")).json()["erasure"]
    assert planned["trigger"] == "erasure"
    assert {one.row: one.active for one in served.gateway.state.erased_rows(space.id)} == {"v1/0": True}
    answer = (await served.http.delete("/v1/memory/episodes?all=true")).json()
    assert answer["deleted"] == 3
    assert [(one["version"], one["rows"]) for one in answer["priors"]] == [("v2", ["v2/0"]), ("v3", ["v3/0"])]
    again = await served.http.delete(f"/v1/memory/episodes/{other.id}")
    assert again.status_code == 404


async def test_what_priors_learned_is_out_of_service_before_a_deletion_fails_half_way(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await fill(served, 2)
    space, registry = served.engine.space, served.gateway.registry
    made = row(served.engine.neutral_latent(), np.eye(1, space.hidden_size), 0.9)
    learned = {"0": [prompt_digest(one.prompt_token_ids) for one in (first, second)]}
    registry.publish([made], {"learned": learned, "labels": [], "trainings": []})
    registry.activate("v1")
    served.gateway.state.add_outcomes(space.id, "default", "v1/0", [(str(n), 1.0) for n in range(9)], "night")
    own = await served.gateway.tenants.of("default")
    await own.prior.refresh()
    assert len(own.prior.current().rows) == 1
    delete, calls = served.gateway.remember.delete, []

    async def failing(name: str) -> bool:
        calls.append(name)
        if len(calls) == 2:
            raise StoreUnavailableError("away")
        return await delete(name)

    monkeypatch.setattr(served.gateway.remember, "delete", failing)
    answer = await served.http.delete("/v1/memory/episodes?all=true")
    assert answer.status_code == 503
    assert own.prior.current().rows == ()
    assert [one.row for one in served.gateway.state.erased_rows(space.id)] == ["v1/0"]
    answer = await served.http.delete("/v1/memory/episodes?all=true")
    assert answer.json()["deleted"] == 1


async def test_an_open_night_that_may_learn_from_what_is_forgotten_is_named(serve: Serve) -> None:
    served = await serve(night_min_episodes=4, night_min_reward=0)
    episodes = await fill(served, 5)
    night = (await served.http.post("/v1/consolidations")).json()
    assert night["state"] == "queued"
    answer = (await served.http.delete(f"/v1/memory/episodes/{episodes[0].id}")).json()
    assert answer["night"] == night["id"]


async def test_what_was_deleted_is_out_of_the_files_after_compaction_and_does_not_come_back(
    serve: Serve, tmp_path: Path
) -> None:
    served = await serve()
    gone, kept = await fill(served, 2)

    def holds(text: str) -> bool:
        return any(text.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())

    assert (await served.http.delete(f"/v1/memory/episodes/{gone.id}")).json()["deleted"] == 1
    for expected in (True, False):
        answer = await served.http.post("/v1/memory/compact")
        assert answer.json() == {"compacted": expected}
    assert holds(kept.answer_text)
    assert not holds(gone.answer_text)
    await asyncio.to_thread(served.gateway.store.close)
    again = await serve()
    listed = (await again.http.get("/v1/memory/episodes")).json()["data"]
    assert [one["id"] for one in listed] == [kept.id]


async def test_an_export_during_which_something_is_forgotten_has_no_end(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_EPISODES", 1)
    first, *_ = await fill(served, 4)
    pieces = await exported(served.gateway, "default")
    begun = next(pieces) + next(pieces)
    assert b"manifest.json" in begun
    await served.http.delete(f"/v1/memory/episodes/{first.id}")
    with pytest.raises(ArchiveError, match="export again"):
        next(pieces)
    whole = (await served.http.get("/v1/memory/export")).content
    assert b"end.json" in whole
    assert first.id.encode() not in whole


async def test_too_many_and_too_old_episodes_go(serve: Serve) -> None:
    served = await serve(memory_max_days=30, memory_max_episodes=20)
    length = 40
    await asyncio.to_thread(
        served.gateway.store.add,
        [
            episode_of(
                served, number, created_at=now() - timedelta(days=60 if number < 10 else 1, hours=number)
            )
            for number in range(length)
        ],
    )
    await asyncio.to_thread(served.gateway.upkeep.look)
    stats = (await served.http.get("/v1/memory/stats")).json()
    assert (stats["expired_episodes"], stats["evicted_episodes"]) == (10, 11)
    left = {one.prompt_text for one in served.gateway.store.scroll()}
    assert left == {f"question {number}" for number in range(10, 29)}


async def test_a_night_learns_from_episodes_whose_text_is_kept_alone(serve: Serve) -> None:
    served = await serve(night_min_episodes=4, night_min_reward=0, memory_redact="question [0-3]$")
    await fill(served, 7)
    listed = (await served.http.get("/v1/memory/episodes")).json()["data"]
    assert sum(one["prompt_text"] == "[redacted]" for one in listed) == 4
    night = (await served.http.post("/v1/consolidations")).json()
    assert night["state"] == "skipped"
    assert night["message"].startswith("3 episodes")
    await fill(served, 8)
    night = (await served.http.post("/v1/consolidations")).json()
    assert (night["state"], night["episodes"]) == ("queued", 7)


async def test_without_text_requests_are_remembered_and_recalled_all_the_same(
    serve: Serve, tmp_path: Path
) -> None:
    served = await serve(memory_text="off")
    await served.chat("sum two and two", latent={"effort": "high"})
    await served.gateway.remember.drain()
    answer = await served.chat("sum two and three")
    assert answer.headers["x-latent-mode"] == "recall"
    [found] = (await served.http.post("/v1/memory/search", json={"text": "sum two and two"})).json()["data"]
    assert found["similarity"] > 0.99
    assert found["episode"]["prompt_text"] == found["episode"]["answer_text"] == ""
    assert await served.gateway.traces.drain()
    await asyncio.to_thread(served.gateway.store.close)
    files = await asyncio.to_thread(
        lambda: [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    )
    assert files
    assert not any(b"two and" in content for content in files)
