"""The gateway's own routes: probes, metrics, statistics, traces, priors, nights."""

import asyncio
import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest

from config import folder_queue
from memory.edge_store import EdgeStore
from memory.free_space import MIB, FreeSpace
from server.steering.store_access import THREADS
from tests.postgres_server import PostgresServer
from tests.scripted_engine import ScriptedEngine
from tests.server.api.conftest import CheckFound, Parts, Serve, Served
from tests.tables import row


def publish(served: Served) -> str:
    space = served.engine.space
    made = row(served.engine.neutral_latent(), np.eye(1, space.hidden_size), 0.9)
    manifest = {
        "parent": None,
        "labels": [["a", "yes"], ["b", None]],
        "learned": {"0": ["d"]},
        "trainings": [],
        "evidence": [{"row": 0, "n": 1, "standing": "on trial", "differences": [["d", 0.5]]}],
    }
    return str(served.gateway.registry.publish([made], manifest))


async def remember(served: Served, questions: int) -> None:
    for number in range(questions):
        await served.chat(f"sum {number}", latent={"effort": "high"})
    await served.gateway.remember.drain()


async def test_readiness_tells_each_part(serve: Serve) -> None:
    served = await serve(Parts(checks=[CheckFound(), CheckFound(name="gradient", ok=False)]))
    answer = await served.http.get("/readyz")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["ready"], body["engine"], body["memory"], body["steering"]) == (True, True, True, False)
    assert body["keys"] is False
    assert [check["name"] for check in body["checks"]] == ["mixed-prompt", "gradient"]
    served.engine.alive = False
    answer = await served.http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["engine"] is False


async def test_gateway_that_could_not_start_says_so(serve: Serve) -> None:
    served = await serve(Parts(broken=RuntimeError("no such model")))
    assert (await served.http.get("/healthz")).status_code == 200
    ready = await served.http.get("/readyz")
    assert ready.status_code == 503
    assert "no such model" in ready.json()["failure"]
    for answer in (await served.chat(), await served.http.get("/v1/priors")):
        assert answer.status_code == 503
        assert "no such model" in answer.json()["error"]["message"]


async def test_requests_before_the_start_are_told_to_wait(serve: Serve) -> None:
    parts = Parts()
    parts.opened.clear()
    served = await serve(parts, ready=False)
    answer = await served.chat()
    assert answer.status_code == 503
    assert "starting" in answer.json()["error"]["message"]
    assert answer.headers["x-latent-reason"] == "not-ready"
    assert (await served.http.get("/healthz")).json() == {"status": "ok"}


async def test_routes_that_ask_a_store_that_hangs_keep_no_thread_of_others(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    for name in ("count", "stats", "get"):
        monkeypatch.setattr(served.gateway.store, name, lambda *_, **__: hangs.wait(60))
    paths = ("/readyz", "/metrics", "/v1/memory/stats", f"/v1/memory/episodes/{uuid4()}")
    asking = [asyncio.create_task(served.http.get(path)) for path in paths * 20]
    await asyncio.sleep(0.1)  # so that all are under way
    try:
        async with asyncio.timeout(30):
            await asyncio.to_thread(int)
        assert not all(task.done() for task in asking)
    finally:
        hangs.set()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_statistics_that_hang_hold_up_no_probe(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, asked = threading.Event(), threading.Semaphore(0)

    def stats(**_: object) -> None:
        asked.release()
        hangs.wait(60)

    monkeypatch.setattr(served.gateway.store, "stats", stats)
    asking = [asyncio.create_task(served.http.get("/v1/memory/stats")) for _ in range(8)]
    try:
        for _ in range(THREADS):
            assert await asyncio.to_thread(asked.acquire, timeout=30)
        assert (await served.http.get("/readyz")).status_code == 200
    finally:
        hangs.set()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_metrics_show_answers_and_memory(served: Served) -> None:
    await served.chat()
    await served.chat(latent={"effort": "extreme"})
    text = (await served.http.get("/metrics")).text
    assert 'latentevolve_requests_total{effort="low",mode="plain",reason="memory-empty"} 1.0' in text
    assert 'reason="rejected"} 1.0' in text
    assert "latentevolve_ready 1.0" in text
    assert "latentevolve_stored_episodes 0.0" in text


async def test_statistics_count_by_space_and_mode(served: Served) -> None:
    await remember(served, 1)
    await served.chat("sum it up")
    await served.chat("sum it up", latent={"effort": "none"})
    stats = (await served.http.get("/v1/memory/stats")).json()
    assert stats["space"] == served.engine.space.id
    space = stats["spaces"][stats["space"]]
    assert space["episodes"] == 1
    assert sum(space["reward_histogram"]) == 1
    assert stats["requests"]["by_mode"] == {"refined": 1, "recall": 1, "plain": 1}
    assert stats["requests"]["steered"] == 2
    assert stats["hit_rate"] == 1.0
    assert stats["pending_writes"] == stats["dropped_writes"] == 0


async def test_memories_of_a_build_that_named_spaces_after_folders_are_served(
    serve: Serve, tmp_path: Path
) -> None:
    space = ScriptedEngine().space
    length, hidden_size = space.shape
    name = space.earlier_id
    EdgeStore(tmp_path / "episodes" / name, space=name, length=length, hidden_size=hidden_size).close()
    served = await serve()
    await remember(served, 1)
    assert (await served.chat("sum it up")).headers["x-latent-mode"] == "recall"
    stats = (await served.http.get("/v1/memory/stats")).json()
    assert stats["space"] == served.engine.space.id == space.earlier_id
    assert sorted(folder.name for folder in (tmp_path / "episodes").iterdir()) == [space.earlier_id]


async def test_deleted_episode_is_gone_also_after_a_restart(serve: Serve) -> None:
    served = await serve()
    await remember(served, 2)
    name = (await served.chat("sum 0", latent={"k": 1})).headers["x-latent-episodes"]
    path = f"/v1/memory/episodes/{name}"
    answer = await served.http.delete(path)
    assert answer.json() == {"deleted": 1, "priors": [], "night": None, "next": None}
    assert (await served.http.delete(path)).status_code == 404
    assert (await served.http.get(path)).status_code == 404
    assert (await served.http.delete("/v1/memory/episodes/no-uuid")).status_code == 404
    assert name not in (await served.chat("sum 0")).headers["x-latent-episodes"]
    await served.gateway.remember.close()
    await asyncio.to_thread(served.gateway.store.close)
    again = await serve()
    assert (await again.http.get(path)).status_code == 404
    assert (await again.http.get("/v1/memory/stats")).json()["spaces"][again.gateway.space]["episodes"] == 1
    assert name not in (await again.chat("sum 0")).headers["x-latent-episodes"]


async def test_full_disk_is_told_and_serving_goes_on(serve: Serve, tmp_path: Path) -> None:
    served = await serve(min_free_mib=2 * FreeSpace(tmp_path, 0).free() // MIB)
    answer = await served.chat("sum 0", latent={"effort": "high"})
    assert (answer.status_code, answer.headers["x-latent-mode"]) == (200, "refined")
    await served.gateway.remember.drain()
    stats = (await served.http.get("/v1/memory/stats")).json()
    assert stats["refused_writes"] == 1
    assert 'latentevolve_episodes_total{result="refused"} 1.0' in (await served.http.get("/metrics")).text
    night = await served.http.post("/v1/consolidations")
    assert night.status_code == 507
    assert "LATENTEVOLVE_MIN_FREE_MIB" in night.json()["error"]["message"]
    assert served.queued == []


async def test_recalled_episode_can_be_read(served: Served) -> None:
    await remember(served, 1)
    name = (await served.chat("sum it up")).headers["x-latent-episodes"]
    episode = (await served.http.get(f"/v1/memory/episodes/{name}")).json()
    assert episode["id"] == name
    assert "sum 0" in episode["prompt_text"]
    assert not {"key", "latent"} & set(episode)


async def test_trace_can_be_fetched_with_its_latent(served: Served) -> None:
    answer = await served.chat("sum two", latent={"effort": "high"})
    path = f"/v1/latent/traces/{answer.headers['x-latent-trace']}"
    trace = (await served.http.get(path)).json()
    assert trace["mode"] == "refined"
    assert "values" not in trace["latent"]
    values = (await served.http.get(path, params={"include": "latent"})).json()["latent"]["values"]
    assert np.shape(values) == served.engine.space.shape


async def test_prior_is_activated_and_rolled_back(served: Served) -> None:
    first, second = publish(served), publish(served)
    listed = (await served.http.get("/v1/priors")).json()
    assert {entry["version"] for entry in listed["versions"]} == {first, second}
    assert all(entry["episodes"] == 2 for entry in listed["versions"])
    long = {"episode_labels", "learned", "trainings"}
    assert not any(long & entry.keys() for entry in listed["versions"])
    for version in (first, second, first):
        answer = await served.http.post(f"/v1/priors/{version}/activate")
        assert answer.json() == {"active": version, "pinned": True}
        current = served.gateway.prior.current()
        assert current is not None
        assert current.version == version
        assert (await served.chat()).headers["x-latent-prior"] == version
    whole = (await served.http.get(f"/v1/priors/{first}")).json()
    assert whole["episode_labels"] == [["a", "yes"], ["b", None]]
    answer = await served.http.post("/v1/priors/none/activate")
    assert answer.json() == {"active": None, "pinned": True}
    assert (await served.chat()).headers["x-latent-prior"] == "none"


async def test_what_an_operator_chose_is_pinned_until_released(served: Served) -> None:
    version = publish(served)
    assert (await served.http.get("/v1/priors")).json()["pinned"] is False
    await served.http.post(f"/v1/priors/{version}/activate")
    assert (await served.http.get("/v1/priors")).json()["pinned"] is True
    released = await served.http.post("/v1/priors/release")
    assert released.json() == {"active": version, "pinned": False}
    listed = (await served.http.get("/v1/priors")).json()
    assert (listed["active"], listed["pinned"]) == (version, False)


async def test_night_is_queued_once(serve: Serve) -> None:
    served = await serve(night_min_episodes=4, night_min_reward=0)
    await remember(served, 5)
    answer = await served.http.post("/v1/consolidations", json={"trigger": "schedule"})
    assert answer.status_code == 202
    night = answer.json()
    assert (night["state"], night["trigger"]) == ("queued", "schedule")
    assert night["episodes"] >= 4
    assert served.queued == [night["id"]]
    assert (Path(served.settings.data_dir) / "snapshots" / night["id"]).is_dir()
    again = await served.http.post("/v1/consolidations")
    assert again.status_code == 409
    assert night["id"] in again.json()["error"]["message"]
    assert (await served.http.get(f"/v1/consolidations/{night['id']}")).json() == night
    assert (await served.http.get("/v1/consolidations")).json()["data"] == [night]


async def test_gateways_on_one_postgresql_database_know_of_each_others_nights_and_traces(
    serve: Serve, tmp_path: Path, postgres: PostgresServer
) -> None:
    shared = {"state_url": postgres.database(), "night_min_episodes": 4, "night_min_reward": 0}
    one, other = [await serve(data_dir=tmp_path / name, **shared) for name in ("one", "other")]
    await remember(one, 5)
    night = (await one.http.post("/v1/consolidations")).json()
    assert night["state"] == "queued"
    assert (await other.http.post("/v1/consolidations")).status_code == 409
    assert (await other.http.get("/v1/consolidations")).json()["data"] == [night]
    answer = await one.chat()
    assert await one.gateway.traces.drain()
    path = f"/v1/latent/traces/{answer.headers['x-latent-trace']}"
    assert (await other.http.get(path)).json() == (await one.http.get(path)).json()


async def test_night_with_too_little_is_skipped_and_says_why(served: Served) -> None:
    night = (await served.http.post("/v1/consolidations")).json()
    assert night["state"] == "skipped"
    assert "needs 16" in night["message"]
    assert served.queued == []
    assert (await served.http.post("/v1/consolidations")).status_code == 202


async def test_night_without_a_broker_fails_and_says_what_to_do(serve: Serve) -> None:
    def away(_: str) -> None:
        raise ConnectionError("refused")

    served = await serve(Parts(send_night=away), night_min_episodes=4, night_min_reward=0)
    await remember(served, 5)
    answer = await served.http.post("/v1/consolidations")
    assert answer.status_code == 503
    assert "broker" in answer.json()["error"]["message"]
    (night,) = (await served.http.get("/v1/consolidations")).json()["data"]
    assert night["state"] == "failed"


@pytest.mark.parametrize("body", [{"trigger": "moon"}, {"when": "now"}, [1]])
async def test_night_of_unknown_trigger_is_refused(served: Served, body: object) -> None:
    answer = await served.http.post("/v1/consolidations", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"]


async def test_documentation_shows_every_route_and_loads_nothing_from_elsewhere(served: Served) -> None:
    schema = (await served.http.get("/openapi.json")).json()
    paths = {route.path for route in served.app.routes if route.include_in_schema}  # type: ignore[attr-defined]
    assert {"/v1/models", "/tokenize", "/healthz", "/v1/priors/{version}/activate"} <= schema["paths"].keys()
    assert paths <= schema["paths"].keys()
    assert not any("head" in operations for operations in schema["paths"].values())
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema)))
    assert references <= schema["components"]["schemas"].keys()
    page = (await served.http.get("/docs")).text
    assert "openapi.json" in page
    assert "//" not in re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)


async def test_documentation_that_vllm_was_told_to_hide_is_hidden(served: Served) -> None:
    served.inner.openapi_url = None
    for path in ("/docs", "/openapi.json"):
        assert (await served.http.get(path)).status_code == 404


async def test_models_are_vllms(served: Served) -> None:
    assert (await served.http.get("/v1/models")).json()["data"][0]["id"] == "small"


async def test_swap_by_another_process_is_followed(served: Served) -> None:
    version = publish(served)
    served.gateway.registry.activate(version)
    async with asyncio.timeout(10):
        while (await served.chat()).headers["x-latent-prior"] != version:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_start_deletes_what_dead_processes_left_half_written(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f".x.{'0' * 32}"
    space = ScriptedEngine().space.id
    folders = [
        "snapshots",
        "schedule",
        f"priors/{space}",
        f"episodes/{space}",
        "nights",
        "nights/one",
        "traces",
        ".",
    ]
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_text("half")
    (tmp_path / "snapshots" / f".y.{'1' * 32}").mkdir()
    (tmp_path / "queue" / "messages").mkdir(parents=True)
    (tmp_path / "queue" / "messages" / ".x.nights.msg").write_text("half")
    later = SimpleNamespace(time=lambda: time.time() + 7200)
    monkeypatch.setattr(folder_queue, "time", later)
    await serve()
    left = await asyncio.to_thread(lambda: [path.name for path in tmp_path.rglob(".[xy].*")])
    assert left == []
