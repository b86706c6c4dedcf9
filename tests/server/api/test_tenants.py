"""Two tenants on one server: every route of ours is asked by one for what the other has."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from fastapi.routing import APIRoute

from memory.archive import Memory, archive_of
from memory.episode import TENANT, Array, Episode, new_id
from memory.store import EpisodeStore
from model.engine import cache_salt
from server import wiring
from server.api.scopes import TABLE, is_public
from server.landscape import Landscape, Projected
from tests.server.api.conftest import CHAT, Serve, Served
from tests.tables import row

OPERATOR = {"authorization": "Bearer s3cret"}
SECRET = "zanzibar"
"""A word of all that the first tenant asks."""
QUESTIONS = [f"sum {SECRET} {number}" for number in range(4)]
SCOPES = ["infer", "memory:read", "memory:write", "admin"]


@dataclass
class Tenant:
    """A tenant as its own client sees the server."""

    name: str
    http: httpx.AsyncClient
    headers: dict[str, str]
    key_id: str
    traces: list[str] = field(default_factory=list)
    episodes: list[str] = field(default_factory=list)
    feedback: list[str] = field(default_factory=list)
    nights: list[str] = field(default_factory=list)
    version: str = "v1"
    """Of its prior."""

    @property
    def marks(self) -> set[str]:
        """What in an answer tells of it."""
        named = f'"tenant":"{self.name}"'
        return {SECRET, named, self.key_id, *self.traces, *self.episodes, *self.feedback, *self.nights}

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return await self.http.request(method, path, headers=self.headers, **more)

    async def chat(self, question: str, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": question}]
        return await self.ask("POST", CHAT, json={"model": "small", "messages": messages} | fields)

    async def state(self) -> dict[str, Any]:
        """Return all that it has, but for what changes by being looked at."""
        stats = (await self.ask("GET", "/v1/memory/stats")).json()
        shown = [
            stats[name] for name in ("spaces", "prior", "feedback", "expired_episodes", "evicted_episodes")
        ]
        return {
            "stats": shown,
            "archive": (await self.ask("GET", "/v1/memory/export")).content,
            "traces": (await self.ask("GET", "/v1/latent/traces", params={"limit": 100})).json(),
            "keys": (await self.ask("GET", "/v1/keys")).json(),
            "priors": (await self.ask("GET", "/v1/priors")).json(),
            "nights": (await self.ask("GET", "/v1/consolidations")).json(),
            "schedule": (await self.ask("GET", "/v1/schedule")).json(),
            "answers": [(await self.chat(question)).json()["text"] for question in QUESTIONS],
        }


async def tenant(served: Served, name: str) -> Tenant:
    body = {"name": name, "scopes": SCOPES, "tenant": name}
    key = (await served.http.post("/v1/keys", json=body, headers=OPERATOR)).json()
    return Tenant(name, served.http, {"authorization": f"Bearer {key['secret']}"}, key["id"])


@pytest.fixture
async def guarded(serve: Serve) -> Served:
    return await serve(api_key="s3cret", night_min_episodes=4, night_min_reward=0)


@pytest.fixture
async def acme(guarded: Served) -> Tenant:
    """A tenant that has asked and been remembered, and has said what it thinks of an answer."""
    made = await tenant(guarded, "acme")
    for question in QUESTIONS:
        answer = await made.chat(question, latent={"effort": "high"})
        made.traces.append(answer.headers["x-latent-trace"])
    await guarded.gateway.remember.drain()
    await guarded.gateway.traces.drain()
    body = {"inference_id": made.traces[0], "metric_name": "rating", "value": True}
    said = await made.ask("POST", "/v1/feedback", json=body)
    made.feedback.append(said.json()["feedback_id"])
    listed = (await made.ask("GET", "/v1/memory/episodes")).json()["data"]
    made.episodes = [one["id"] for one in listed]
    assert len(made.episodes) == len(QUESTIONS)
    own = await guarded.gateway.tenants.of(made.name)
    manifest = {"labels": [[made.episodes[0], SECRET]], "evidence": [], "parent": None}
    prior = row(guarded.engine.neutral_latent(), np.eye(1, guarded.engine.space.hidden_size), 0.9)
    for _ in range(2):
        made.version = own.registry.publish([prior], manifest)
        own.registry.activate(made.version)
    await own.prior.refresh()
    started = await made.ask("POST", "/v1/consolidations")
    assert (started.status_code, started.json()["state"]) == (202, "queued"), started.text
    made.nights.append(started.json()["id"])
    return made


@pytest.fixture
async def globex(guarded: Served) -> Tenant:
    """A tenant that has nothing, and knows all ids of the other."""
    return await tenant(guarded, "globex")


@dataclass(frozen=True)
class Call:
    """How a route is asked for what a tenant has."""

    of: Callable[[Tenant], dict[str, Any]] = lambda _: {}
    """What is sent, made of what the tenant has: `path` parameters, `json`, `params`."""
    shows: bool = True
    """Whether the tenant itself is shown something of its own."""
    status: int = 200
    """What another tenant is answered."""
    known: str = ""
    """What else tells of the tenant here."""


def by(name: str, value: Callable[[Tenant], str], **more: Any) -> Call:
    return Call(lambda whose: {"path": {name: value(whose)}}, **{"status": 404, **more})


def body(**fields: Any) -> Call:
    return Call(lambda _: {"json": fields})


def said_of(whose: Tenant) -> dict[str, Any]:
    """Return the same feedback again, under its id."""
    asked = {"inference_id": whose.traces[0], "metric_name": "rating", "value": True}
    return {"json": asked | {"feedback_id": whose.feedback[0]}}


CALLS: dict[str, Call] = {
    "GET /v1/memory/stats": Call(shows=False),
    "GET /v1/memory/episodes": Call(),
    "DELETE /v1/memory/episodes": Call(lambda _: {"params": {"reward_max": 1}}, shows=False),
    "GET /v1/memory/episodes/{episode_id}": by("episode_id", lambda whose: whose.episodes[0]),
    "DELETE /v1/memory/episodes/{episode_id}": by("episode_id", lambda whose: whose.episodes[0], shows=False),
    "POST /v1/memory/search": body(text=QUESTIONS[0]),
    "GET /v1/memory/export": Call(),
    "POST /v1/memory/import": Call(lambda _: {"content": b"no archive"}, shows=False, status=400),
    "GET /v1/memory/map": Call(shows=False),  # drawn in the background
    "GET /v1/memory/clusters": Call(shows=False),
    "GET /v1/latent/timeline": Call(shows=False),
    "GET /v1/latent/traces": Call(),
    "GET /v1/latent/traces/{trace_id}": by("trace_id", lambda whose: whose.traces[0]),
    "DELETE /v1/latent/traces/{trace_id}": by("trace_id", lambda whose: whose.traces[0], shows=False),
    "POST /v1/feedback": Call(said_of, status=404),
    "POST /v1/embeddings": Call(lambda _: {"json": {"model": "small", "input": "hello"}}, shows=False),
    "GET /v1/keys": Call(),
    "POST /v1/keys": Call(
        lambda whose: {"json": {"name": "x", "scopes": ["infer"], "tenant": whose.name}},
        shows=False,
        status=403,
    ),
    "GET /v1/keys/{key_id}": by("key_id", lambda whose: whose.key_id),
    "POST /v1/keys/{key_id}/rotate": by("key_id", lambda whose: whose.key_id, shows=False),
    "POST /v1/keys/{key_id}/revoke": by("key_id", lambda whose: whose.key_id, shows=False),
    "GET /v1/experiments": Call(),
    "PUT /v1/experiments": Call(lambda _: {"json": {"steering": "off"}}),
    "GET /v1/priors": Call(shows=False, known="v2"),
    "GET /v1/priors/compare": Call(
        lambda _: {"params": {"a": "v1", "b": "v2"}}, shows=False, status=404, known="v2"
    ),
    "GET /v1/priors/{version}": by("version", lambda whose: whose.version, status=404),
    "POST /v1/priors/{version}/activate": by("version", lambda whose: whose.version, shows=False),
    "POST /v1/priors/rollback": Call(shows=False, status=409),
    "POST /v1/priors/release": Call(shows=False),
    "GET /v1/consolidations": Call(),
    "POST /v1/consolidations": Call(shows=False, status=202),
    "GET /v1/consolidations/{night_id}": by("night_id", lambda whose: whose.nights[0]),
    "GET /v1/consolidations/{night_id}/events": by("night_id", lambda whose: whose.nights[0], shows=False),
    "POST /v1/consolidations/{night_id}/cancel": by("night_id", lambda whose: whose.nights[0]),
    "GET /v1/schedule": Call(),
    "PUT /v1/schedule": Call(lambda _: {"json": {"cron": "never"}}, shows=False),
    "DELETE /v1/schedule": Call(shows=False),
    "GET /docs": Call(shows=False),
    "GET /openapi.json": Call(shows=False),
}
"""How each route of ours that a tenant may ask is asked for what another has."""


def ours(served: Served) -> dict[str, bool]:
    """Return the routes of ours that are not public, and whether tenants have them for themselves."""
    rules = {route: rule for rule, routes in TABLE.items() for route in routes}
    return {
        f"{method} {route.path}": rules[f"{method} {route.path}"].everybody
        for route in served.app.routes
        if isinstance(route, APIRoute) and not is_public(route.path)
        for method in route.methods - {"HEAD"}
    }


async def test_every_route_of_ours_is_checked_or_concerns_all_tenants(guarded: Served) -> None:
    assert {route for route, everybody in ours(guarded).items() if everybody} == set(CALLS)


async def ask(who: Tenant, route: str, whose: Tenant) -> httpx.Response:
    method, path = route.split(" ")
    sent = CALLS[route].of(whose)
    return await who.ask(method, path.format(**sent.pop("path", {})), **sent)


def told(answer: httpx.Response) -> str:
    return answer.text + json.dumps(dict(answer.headers))


@pytest.mark.parametrize("route", sorted(CALLS))
async def test_no_route_shows_or_changes_anything_of_another_tenant(
    acme: Tenant, globex: Tenant, route: str
) -> None:
    call = CALLS[route]
    before = await acme.state()
    stranger = await ask(globex, route, acme)
    assert stranger.status_code == call.status, stranger.text
    if stranger.status_code < 300:
        assert not [mark for mark in acme.marks if mark in told(stranger)]
        assert not call.known or call.known not in stranger.text
    after = await acme.state()
    for name, value in before.items():
        if name != "traces":  # of the questions that were asked to compare
            assert after[name] == value, name
    if not (call.shows or call.known):
        return
    own = await ask(acme, route, acme)
    if call.shows:
        assert own.status_code == 200, own.text
        assert [mark for mark in acme.marks if mark in told(own)]
    if call.known:
        assert call.known in own.text


async def test_what_concerns_all_tenants_is_refused_to_one(guarded: Served, globex: Tenant) -> None:
    shared = [route for route, everybody in ours(guarded).items() if not everybody]
    assert shared
    for route in (*shared, "POST /sleep", "POST /v1/load_lora_adapter", "GET /v1/responses/resp_1"):
        method, path = route.split(" ")
        answer = await globex.ask(method, path.replace("{version}", "v1").replace("{night_id}", new_id()))
        assert answer.status_code == 403, route


async def test_another_tenant_recalls_nothing_and_leaves_the_first_as_it_was(
    guarded: Served, acme: Tenant, globex: Tenant
) -> None:
    asked = QUESTIONS[0]
    assert (await acme.chat(asked)).headers["x-latent-mode"] == "recall"
    await globex.chat("rivers number 1", latent={"effort": "high"})  # so that it is asked what it remembers
    await guarded.gateway.remember.drain()
    stranger = await globex.chat(asked)
    assert stranger.headers["x-latent-reason"] == "nothing-recalled"
    assert (stranger.headers["x-latent-mode"], stranger.headers["x-latent-episodes"]) == ("plain", "")
    messages = [{"role": "user", "content": asked}]
    operator = await guarded.http.post(CHAT, json={"model": "small", "messages": messages}, headers=OPERATOR)
    assert operator.headers["x-latent-reason"] == "memory-empty"
    assert stranger.json()["text"] == operator.json()["text"]


async def test_the_same_question_is_an_episode_of_each_tenant(
    guarded: Served, acme: Tenant, globex: Tenant
) -> None:
    archive = (await acme.ask("GET", "/v1/memory/export")).content
    await globex.chat(QUESTIONS[0], latent={"effort": "high"})
    await guarded.gateway.remember.drain()
    (own,) = (await globex.ask("GET", "/v1/memory/episodes")).json()["data"]
    assert own["tenant"] == "globex"
    assert own["id"] not in acme.episodes
    assert (await acme.ask("GET", "/v1/memory/export")).content == archive
    deleted = await globex.ask("DELETE", "/v1/memory/episodes", params={"all": True})
    assert deleted.json()["deleted"] == 1
    assert (await acme.ask("GET", "/v1/memory/export")).content == archive
    trace = (await acme.ask("GET", f"/v1/latent/traces/{acme.traces[0]}")).json()
    assert [one["id"] for one in trace["feedback"]] == acme.feedback


@dataclass
class Listed:
    """As much of a store as an archive is made of."""

    episodes: list[Episode]

    def scroll(self, **_: Any) -> Iterator[Episode]:
        yield from self.episodes


def archive(served: Served, whose: str, episodes: list[Episode]) -> bytes:
    memory = Memory(served.gateway.space, whose, *served.engine.space.shape)
    return b"".join(archive_of(cast(EpisodeStore, Listed(episodes)), memory))


async def test_nobody_imports_what_is_another_tenants_or_bears_its_ids(
    guarded: Served, acme: Tenant, globex: Tenant
) -> None:
    exported = (await acme.ask("GET", "/v1/memory/export")).content
    episodes = guarded.gateway.store.fetch(acme.episodes)
    stolen = [replace(one, tenant="globex", reward=1.0, answer_text="poison") for one in episodes]
    own = [replace(one, id=new_id("globex")) for one in stolen]
    for content in (exported, archive(guarded, "globex", stolen), archive(guarded, "globex", episodes)):
        answer = await globex.ask("POST", "/v1/memory/import", content=content)
        assert answer.status_code == 400, answer.text
        assert (await globex.ask("GET", "/v1/memory/episodes")).json()["data"] == []
    taken = await globex.ask("POST", "/v1/memory/import", content=archive(guarded, "globex", own))
    assert taken.json()["added"] == len(own)
    operators = await guarded.http.post(
        "/v1/memory/import",
        content=archive(guarded, TENANT, [replace(one, tenant=TENANT) for one in stolen]),
        headers=OPERATOR,
    )
    assert operators.status_code == 400
    assert (await acme.ask("GET", "/v1/memory/export")).content == exported
    again = await acme.ask("POST", "/v1/memory/import", content=exported)
    assert again.json()["skipped"] == len(QUESTIONS)


async def test_statistics_count_what_the_tenant_did(acme: Tenant, globex: Tenant) -> None:
    first, second = [(await who.ask("GET", "/v1/memory/stats")).json() for who in (acme, globex)]
    assert first["requests"]["by_mode"].keys() <= {"refined", "voted"}
    assert first["requests"]["total"] == len(QUESTIONS)
    assert first["feedback"] == {"rating": 1}
    (space,) = first["spaces"].values()
    assert space["episodes"] == len(QUESTIONS)
    assert second["requests"] == {"total": 0, "steered": 0, "by_mode": {}}
    (space,) = second["spaces"].values()
    assert (space["episodes"], second["feedback"], second["hit_rate"]) == (0, {}, None)
    timeline = (await globex.ask("GET", "/v1/latent/timeline")).json()
    assert timeline["total"]["requests"] == 0


async def test_a_map_is_of_the_tenants_own_episodes(guarded: Served, acme: Tenant, globex: Tenant) -> None:
    async def project(keys: Array, _: Array) -> Projected:
        return np.zeros((len(keys), 2), np.float32), np.zeros(len(keys), np.int64)

    await globex.chat("rivers number 1", latent={"effort": "high"})
    await guarded.gateway.remember.drain()
    gateway = guarded.gateway
    landscape = Landscape(gateway.statistics, gateway.tenants.prior_of, project=project, rest_s=0)
    for whose, episodes in (("globex", 1), ("acme", len(QUESTIONS))):
        await landscape.look(whose)
        await landscape.settled()
        drawing = (await landscape.look(whose)).drawing
        assert drawing is not None
        assert len(drawing.places) == episodes
        assert set(drawing.places).isdisjoint(acme.episodes) == (whose == "globex")
        assert drawing.version == (None if whose == "globex" else "v2")
    await landscape.close()


async def test_two_tenants_may_name_their_feedback_alike(acme: Tenant, globex: Tenant) -> None:
    answer = await globex.chat("sum it up", latent={"effort": "high"})
    said = {"inference_id": answer.headers["x-latent-trace"], "metric_name": "comment", "value": "fine"}
    for _ in range(2):
        body = said | {"feedback_id": acme.feedback[0]}
        assert (await globex.ask("POST", "/v1/feedback", json=body)).json() == {
            "feedback_id": acme.feedback[0]
        }
    shown = (await globex.ask("GET", f"/v1/latent/traces/{said['inference_id']}")).json()["feedback"]
    assert [(one["id"], one["value"]) for one in shown] == [(acme.feedback[0], "fine")]


async def test_whatever_a_tenant_asks_of_the_engine_bears_a_salt_that_nobody_else_can_know(
    guarded: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, salts = guarded.engine, set[str | None]()

    def noting(asked: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **more: Any) -> Any:
            salts.add(cache_salt.get())
            return asked(*args, **more)

        return noted

    for name in ("keys", "generate"):
        monkeypatch.setattr(engine, name, noting(getattr(engine, name)))

    async def seen(who: Tenant) -> set[str | None]:
        salts.clear()
        for effort in ("low", "medium", "high"):
            await who.chat(f"sum {effort}", latent={"effort": effort, "explore": True})
            await guarded.gateway.steering.explorer.drain()
        await who.ask("POST", "/v1/embeddings", json={"model": "small", "input": "hello"})
        await who.ask("POST", "/v1/memory/search", json={"text": "hello"})
        return set(salts)

    operator = Tenant(TENANT, guarded.http, OPERATOR, "")
    first, second = await tenant(guarded, "acme"), await tenant(guarded, "globex")
    (one,), (other,) = await seen(first), await seen(second)
    assert await seen(operator) == {None}
    assert await seen(first) == {one}
    assert one is not None
    assert other is not None
    assert one != other
    assert first.name not in one


async def test_exploring_is_shared_by_turns(serve: Serve) -> None:
    served = await serve(api_key="s3cret", explore_concurrency=1, explore_time_share=1)
    first, second = await tenant(served, "acme"), await tenant(served, "globex")
    explorer = served.gateway.steering.explorer
    with explorer.client():  # so that nothing of it begins
        for number in range(5):
            await first.chat(f"sum {number}", latent={"explore": True})
        await second.chat("sum it up", latent={"explore": True})
        assert explorer.summary("acme")["waiting"] == 5
        assert explorer.summary("globex")["waiting"] == 1
        assert explorer.summary()["waiting"] == 0
    explored: list[str] = []
    served.gateway.remember.listen(lambda episode, _: explored.append(episode.tenant))
    await explorer.drain()
    await served.gateway.remember.drain()
    assert sorted(explored) == ["acme"] * 5 + ["globex"]
    assert explored.index("globex") <= 1


async def test_nights_of_a_tenant_are_looked_after_while_a_key_of_it_works(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "LOOK_AT_TENANTS_S", 0.01)
    keys = (await serve(api_key="operator")).gateway.doorman.keys

    async def wait_until(watched: bool) -> None:
        for _ in range(3000):
            if ("nights of shop" in {task.get_name() for task in asyncio.all_tasks()}) == watched:
                return
            await asyncio.sleep(0.01)
        raise TimeoutError

    key, _ = keys.create("app", ["infer"], tenant="shop")
    await wait_until(watched=True)
    keys.revoke(key.id)
    await wait_until(watched=False)
    keys.create("app", ["infer"], tenant="shop")
    await wait_until(watched=True)
