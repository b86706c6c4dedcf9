"""API keys over HTTP: made and taken away while the server runs, scopes, rates, and none at all."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from memory.api_keys import ApiKeys
from memory.episode import now
from memory.state import State
from server.api.scopes import TABLE, is_public, rule_of
from tests.server.api.conftest import CHAT, Parts, Serve, Served

OPERATOR = {"authorization": "Bearer s3cret"}


async def made(served: Served, *scopes: str, **fields: Any) -> dict[str, Any]:
    """Return a new key as it is shown once."""
    body = {"name": "app", "scopes": scopes, **fields}
    answer = await served.http.post("/v1/keys", json=body, headers=OPERATOR)
    assert answer.status_code == 201, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


def bearer(key: dict[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {key['secret']}"}


async def status(served: Served, key: dict[str, Any], path: str = "/v1/models") -> int:
    return (await served.http.get(path, headers=bearer(key))).status_code


async def until(served: Served, headers: dict[str, str], wanted: int) -> None:
    """Wait until requests with these headers are answered so."""
    found = 0
    for _ in range(1200):
        found = (await served.http.get("/v1/models", headers=headers)).status_code
        if found == wanted:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"still {found}")


@pytest.fixture
async def guarded(serve: Serve) -> Served:
    """A gateway with an operator's key."""
    return await serve(api_key="s3cret")


async def test_a_key_is_shown_once_and_works_at_once(guarded: Served) -> None:
    key = await made(guarded, "memory:read", "infer", tenant="acme", rate_limit="60/minute")
    assert key["scopes"] == ["infer", "memory:read"]
    assert (key["tenant"], key["rate_limit"], key["revoked_at"]) == ("acme", "60/minute", None)
    assert await status(guarded, key) == 200
    listed = await guarded.http.get("/v1/keys", headers=OPERATOR)
    one = await guarded.http.get(f"/v1/keys/{key['id']}", headers=OPERATOR)
    assert listed.json() == {"object": "list", "data": [one.json()]}
    assert one.json() == {name: value for name, value in key.items() if name != "secret"}
    assert key["secret"] not in listed.text


async def test_a_key_may_be_sent_as_anthropics_clients_do(guarded: Served) -> None:
    key = await made(guarded, "infer")
    answer = await guarded.http.get("/v1/models", headers={"x-api-key": key["secret"]})
    assert answer.status_code == 200


async def test_a_revoked_key_is_refused_without_a_restart(guarded: Served) -> None:
    key, other = await made(guarded, "infer"), await made(guarded, "infer")
    assert await status(guarded, key) == 200
    revoked = await guarded.http.post(f"/v1/keys/{key['id']}/revoke", headers=OPERATOR)
    assert revoked.json()["revoked_at"] is not None
    await until(guarded, bearer(key), 401)
    assert await status(guarded, other) == 200
    again = await guarded.http.post(f"/v1/keys/{key['id']}/revoke", headers=OPERATOR)
    assert again.status_code == 404


async def test_a_rotated_key_lets_its_new_secret_pass_and_soon_no_other(guarded: Served) -> None:
    key = await made(guarded, "infer")
    assert await status(guarded, key) == 200
    rotated = (await guarded.http.post(f"/v1/keys/{key['id']}/rotate", headers=OPERATOR)).json()
    assert {**key, "secret": ""} == {**rotated, "secret": ""}
    assert await status(guarded, rotated) == 200
    await until(guarded, bearer(key), 401)
    assert await status(guarded, rotated) == 200


async def test_an_expired_key_is_refused(guarded: Served) -> None:
    soon = now() + timedelta(seconds=0.5)
    key = await made(guarded, "infer", expires_at=soon.isoformat())
    assert datetime.fromisoformat(key["expires_at"]) == soon
    await until(guarded, bearer(key), 401)


@pytest.mark.parametrize(
    ("scopes", "method", "path", "needed"),
    [
        (["memory:read"], "POST", CHAT, "infer"),
        (["infer"], "GET", "/v1/memory/stats", "memory:read"),
        (["infer", "memory:read"], "DELETE", "/v1/memory/episodes?all=true", "memory:write"),
        (["infer", "memory:read", "memory:write"], "POST", "/v1/consolidations", "admin"),
        (["infer", "memory:read", "memory:write"], "GET", "/v1/keys", "admin"),
        (["infer", "memory:read", "memory:write"], "POST", "/sleep", "admin"),
        (["infer", "memory:read", "memory:write"], "GET", "/nothing-like-it", "admin"),
    ],
)
async def test_a_key_without_the_scope_is_refused_naming_it(
    guarded: Served, scopes: list[str], method: str, path: str, needed: str
) -> None:
    key = await made(guarded, *scopes)
    answer = await guarded.http.request(method, path, headers=bearer(key))
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("PermissionDeniedError", 403)
    assert needed in error["message"]
    allowed = await guarded.http.request(method, path, headers=bearer(await made(guarded, needed)))
    assert allowed.status_code not in (401, 403)


async def test_a_refusal_has_anthropics_shape_on_its_routes(guarded: Served) -> None:
    key = await made(guarded, "memory:read")
    answer = await guarded.http.post("/v1/messages", json={}, headers=bearer(key))
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "PermissionDeniedError"
    assert answer.json()["type"] == "error"


async def test_too_many_requests_are_told_when_to_come_again(guarded: Served) -> None:
    key = await made(guarded, "infer", rate_limit="2/hour")
    assert [await status(guarded, key) for _ in range(3)] == [200, 200, 429]
    answer = await guarded.http.post(CHAT, json={}, headers=bearer(key))
    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "RateLimitError"
    assert 3500 < int(answer.headers["retry-after"]) <= 3601
    assert await status(guarded, await made(guarded, "infer")) == 200


async def test_admins_of_a_tenant_have_the_keys_of_theirs_alone(guarded: Served) -> None:
    admin = await made(guarded, "admin", tenant="acme")
    foreign = await made(guarded, "infer", tenant="other")
    own = await guarded.http.post("/v1/keys", json={"name": "x", "scopes": ["infer"]}, headers=bearer(admin))
    assert (own.status_code, own.json()["tenant"]) == (201, "acme")
    for tenant in ("other", "default"):
        asked = {"name": "x", "scopes": ["infer"], "tenant": tenant}
        assert (await guarded.http.post("/v1/keys", json=asked, headers=bearer(admin))).status_code == 403
    listed = (await guarded.http.get("/v1/keys", headers=bearer(admin))).json()["data"]
    assert {key["id"] for key in listed} == {admin["id"], own.json()["id"]}
    for method, path in (("GET", ""), ("POST", "/rotate"), ("POST", "/revoke")):
        answer = await guarded.http.request(method, f"/v1/keys/{foreign['id']}{path}", headers=bearer(admin))
        assert answer.status_code == 404
    assert await status(guarded, foreign) == 200
    server_wide = await guarded.http.post("/v1/memory/compact", headers=bearer(admin))
    assert server_wide.status_code == 403
    assert "tenant default" in server_wide.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes.0"),
        ({"name": ""}, "name"),
        ({"tenant": "A B"}, "tenant"),
        ({"rate_limit": "60 a minute"}, "rate_limit"),
        ({"expires_at": "2001-01-01"}, "expires_at"),
        ({"hash": "x"}, "hash"),
    ],
)
async def test_what_cannot_be_a_key_names_the_field(
    guarded: Served, fields: dict[str, Any], param: str
) -> None:
    body = {"name": "app", "scopes": ["infer"]} | fields
    answer = await guarded.http.post("/v1/keys", json=body, headers=OPERATOR)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await guarded.http.get("/v1/keys", headers=OPERATOR)).json()["data"] == []


async def test_the_first_key_closes_a_server_that_had_none(served: Served) -> None:
    assert (await served.http.get("/v1/memory/stats")).status_code == 200
    body = {"name": "first", "scopes": ["admin"]}
    key = (await served.http.post("/v1/keys", json=body)).json()
    await until(served, {}, 401)
    assert await status(served, key, "/v1/memory/stats") == 200


async def test_a_key_of_the_data_folder_is_asked_for_from_the_start(serve: Serve, tmp_path: Path) -> None:
    with State.in_folder(tmp_path) as state:
        _, secret = ApiKeys(state).create("first", ["infer"])
    served = await serve()
    assert (await served.http.get("/v1/models")).status_code == 401
    assert await status(served, {"secret": secret}) == 200


def from_elsewhere(served: Served, address: str, host: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(served.app, client=(address, 4321))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


@pytest.mark.parametrize(
    ("address", "host", "answered"),
    [
        ("127.0.0.1", "localhost:8000", True),
        ("::1", "[::1]:8000", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("192.0.2.7", "192.0.2.1:8000", False),
        ("192.0.2.7", "localhost", False),
        ("127.0.0.1", "rebound.example", False),
    ],
)
async def test_without_any_key_only_this_machine_is_answered_by_its_own_name(
    served: Served, address: str, host: str, answered: bool
) -> None:
    async with from_elsewhere(served, address, host) as http:
        for path in ("/v1/models", "/v1/memory/stats"):
            answer = await http.get(path)
            assert answer.status_code == (200 if answered else 403)
            assert answered or "latentevolve keys create" in answer.json()["error"]["message"]
        assert (await http.get("/readyz")).status_code == 200


@pytest.mark.parametrize("open_without_key", [False, True])
@pytest.mark.parametrize(
    ("origin", "answered"),
    [
        (None, True),
        ("http://localhost:3000", True),
        ("http://127.0.0.1:8000", True),
        ("https://app.example", True),
        ("https://evil.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("null", False),
    ],
)
async def test_without_any_key_no_page_of_another_site_changes_anything(
    serve: Serve, open_without_key: bool, origin: str | None, answered: bool
) -> None:
    allowed = "--allowed-origins '[\"https://app.example\"]'"
    served = await serve(open_without_key=open_without_key, vllm_args=allowed)
    headers = {} if origin is None else {"origin": origin}
    async with from_elsewhere(served, "127.0.0.1", "127.0.0.1:8000") as http:
        answer = await http.post("/v1/priors/none/activate", headers=headers)
        assert answer.status_code == (200 if answered else 403)
        assert served.gateway.registry.pinned() is answered


async def test_other_machines_are_answered_with_a_key_or_where_the_operator_says_so(
    serve: Serve, tmp_path: Path
) -> None:
    guarded = await serve(api_key="s3cret")
    opened = await serve(open_without_key=True, data_dir=tmp_path / "other")
    async with from_elsewhere(guarded, "192.0.2.7", "box.example") as http:
        assert (await http.get("/v1/models", headers=OPERATOR)).status_code == 200
    async with from_elsewhere(opened, "192.0.2.7", "box.example") as http:
        # The key of the first is another server's.
        assert (await http.get("/v1/models", headers=OPERATOR)).status_code == 200


async def test_nothing_is_answered_before_it_is_known_who_may_ask(serve: Serve) -> None:
    parts = Parts()
    parts.opened.clear()
    served = await serve(parts, ready=False)
    for path in ("/v1/models", "/v1/memory/stats", "/docs"):
        assert (await served.http.get(path)).status_code == 503
    assert (await served.http.get("/healthz")).status_code == 200


def test_every_route_of_ours_stands_in_the_table_of_scopes_or_is_public(served: Served) -> None:
    listed = {route for routes in TABLE.values() for route in routes}
    for route in served.app.routes:
        assert isinstance(route, APIRoute), route
        for method in route.methods - {"HEAD"}:
            assert f"{method} {route.path}" in listed or is_public(route.path), f"{method} {route.path}"


def test_the_table_names_no_route_twice_and_reads_it_as_routers_do() -> None:
    routes = [route for routes in TABLE.values() for route in routes]
    assert len(routes) == len(set(routes))
    for rule, names in TABLE.items():
        for name in names:
            method, _, path = name.partition(" ")
            assert rule_of(method, path) == rule
            if method == "GET":
                assert rule_of("HEAD", path) == rule
