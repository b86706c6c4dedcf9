"""Errors: the shape of their route, a request id, and nothing from inside."""

import json
import random
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

import httpx
import pytest
from fastapi.routing import APIRoute

from memory.episode import StoreUnavailableError
from memory.state import State
from server.api import body_limit
from tests.server.api.conftest import CHAT, Serve, Served

JSON = {"content-type": "application/json"}


async def test_unknown_error_hides_internals(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(served.gateway.metrics, "summary", broken)
    answer = await served.http.get("/v1/memory/stats", headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "abc-1"
    error = answer.json()["error"]
    assert "abc-1" in error["message"]
    assert "secret" not in answer.text
    assert "RuntimeError" not in answer.text
    assert "secret of the inside" in caplog.text


async def test_unknown_route_has_vllms_answer(served: Served) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = await served.http.request(method, "/v1/nothing-here")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


def table(served: Served) -> dict[str, set[str]]:
    """Return the methods of each of our paths."""
    methods: dict[str, set[str]] = {}
    for route in served.app.routes:
        assert isinstance(route, APIRoute)
        path = re.sub(r"{\w+}", "00000000-0000-4000-8000-000000000000", route.path)
        methods.setdefault(path, set()).update(route.methods)
    assert {"/healthz", "/v1/priors", "/v1/memory/stats"} <= methods.keys()
    return methods


async def test_head_is_answered_wherever_get_is(served: Served) -> None:
    for path, methods in table(served).items():
        assert ("GET" in methods) == ("HEAD" in methods), path
        if "GET" in methods:
            head, get = await served.http.head(path), await served.http.get(path)
            assert head.status_code == get.status_code, path
            assert head.headers.get("content-type") == get.headers.get("content-type"), path


async def test_wrong_method_is_a_405_that_names_the_right_ones(served: Served) -> None:
    for path, methods in table(served).items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - methods:
            if path.endswith(("/release", "/rollback")) and method == "GET":
                continue  # a version of that name might be asked for
            answer = await served.http.request(method, path)
            assert answer.status_code == 405, (method, path)
            assert answer.json()["error"]["type"] == "MethodNotAllowedError"
            assert methods <= set(answer.headers["allow"].split(", ")), path


MESSAGES = "/v1/messages"


def anthropic(answer: httpx.Response) -> str:
    """Return the type of an error in Anthropic's shape."""
    body = answer.json()
    assert body.keys() == {"type", "error"}
    assert body["error"].keys() == {"type", "message"}
    assert body["type"] == "error"
    assert body["error"]["message"]
    return str(body["error"]["type"])


@pytest.mark.parametrize("path", ["/v1/feedback", "/v1/memory/search", "/v1/embeddings", "/tokenize"])
@pytest.mark.parametrize("announced", [True, False])
async def test_no_route_reads_a_body_without_end(
    served: Served, monkeypatch: pytest.MonkeyPatch, path: str, announced: bool
) -> None:
    monkeypatch.setattr(body_limit, "MAX_BODY_BYTES", 1000)
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 100

    headers = {"content-type": "application/json"} | ({"content-length": "10000"} if announced else {})
    answer = await served.http.post(path, content=body(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "body")
    assert sent <= 12


async def test_no_route_reads_more_values_than_it_can_bear(served: Served) -> None:
    for path in ("/v1/feedback", "/v1/embeddings", "/tokenize", CHAT):
        tokens = path in body_limit.TOKEN_PATHS
        most = body_limit.MOST_COMMAS_OF_TOKENS if tokens else body_limit.MOST_COMMAS
        body = b"[" + b"{}," * (most + 1) + b"{}]"
        answer = await served.http.post(path, content=body, headers=JSON)
        assert (answer.status_code, answer.json()["error"]["param"]) == (413, "body"), path


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [0] * 60_000},
        {"messages": [{"role": "user", "content": [{}] * 60_000}]},
        {"messages": [], "stop": [""] * 60_000},
        {"messages": [], "tools": [{"a": [[], None, True] * 20_000}]},
        {"messages": [], "tools": [0] * 60_000},
        {"input": [0] * 60_000},
    ],
)
async def test_more_values_than_a_conversation_of_the_context_has_are_refused_at_once(
    served: Served, body: dict[str, object]
) -> None:
    answer = await served.http.post("/v1/responses" if "input" in body else CHAT, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "body")
    assert "values beside tokens" in answer.json()["error"]["message"]


async def test_many_tokens_are_no_values(served: Served) -> None:
    answer = await served.http.post("/tokenize", json={"prompt": [7] * 300_000})
    assert answer.json()["seen"]["prompt"] == [7] * 300_000
    parts = {"file": ("sound.wav", b"," * 300_000)}
    assert (await served.http.post("/v1/audio/transcriptions", files=parts)).status_code != 413


async def test_a_batch_may_have_more_parts_than_one_conversation(served: Served) -> None:
    conversation = [{"role": "user", "content": "sum two and two"}] * 4
    answer = await served.http.post(
        f"{CHAT}/batch", json={"model": "small", "messages": [conversation] * 1500}
    )
    assert "values beside tokens" not in answer.text


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens"])
async def test_errors_of_ours_have_anthropics_shape_on_its_routes(serve: Serve, path: str) -> None:
    served = await serve(api_key="s3cret")
    unknown = await served.http.post(path, json={})
    assert (unknown.status_code, anthropic(unknown)) == (401, "AuthenticationError")
    served.http.headers["authorization"] = "Bearer s3cret"
    suffix = await served.http.post(path, json={"model": "small:extreme"})
    assert (suffix.status_code, anthropic(suffix)) == (404, "NotFoundError")
    long = await served.http.post(
        path, content=b"{}", headers={"content-type": "application/json", "content-length": str(2**40)}
    )
    assert (long.status_code, anthropic(long)) == (413, "RequestEntityTooLargeError")
    served.app.state.readiness.close("no such model")
    away = await served.http.post(path, json={})
    assert (away.status_code, anthropic(away)) == (503, "ServiceUnavailableError")


async def test_refused_option_has_anthropics_shape_on_its_route(served: Served) -> None:
    answer = await served.http.post(MESSAGES, json={"latent": {"k": 0}})
    assert (answer.status_code, anthropic(answer)) == (400, "BadRequestError")
    assert "latent.k" in answer.json()["error"]["message"]


NASTY = "\ud800\udfff\0\r\n\t\x1b\x7f\x85\u2028\ufeff\u202eé語𝕏\\\"'%{}<>:/.#? aZ0"


def texts(seed: int, count: int) -> Iterator[str]:
    """Yield strings of what clients should not send."""
    generator = random.Random(seed)
    for _ in range(count):
        yield "".join(generator.choices(NASTY, k=generator.randint(1, 12)))


async def test_nothing_a_client_sends_breaks_an_answer(served: Served) -> None:
    """Whatever is echoed: a model's name, an option, a path, a query, a header, a number."""
    version = "00000000-0000-4000-8000-000000000000"
    for text in texts(seed=7, count=40):
        quoted = quote(text, safe="", errors="surrogatepass")
        latin = text.encode("latin-1", "ignore").translate(None, b"\r\n\x00")
        bodies = [
            {"model": f"small:{text}"},
            {"model": text},
            {"latent": {text: text}},
            {"latent": {"effort": text, "prior": text}},
            {"latent": {"effort": "low", "prior": text}},
            {"latent": {"k": float("nan"), "floor": float("inf"), "seed": 10**400}},
            {"reasoning_effort": text, text: text},
        ]
        answers = [
            await served.http.post(path, content=json.dumps(body), headers=JSON)
            for body in bodies
            for path in (CHAT, MESSAGES, "/tokenize")
        ]
        answers += [
            await served.http.post("/v1/consolidations", content=json.dumps(body), headers=JSON)
            for body in ({"trigger": text}, {text: text})
        ]
        answers += [
            await served.http.get(f"/v1/{place}")
            for place in (
                f"priors/{quoted}",
                f"latent/traces/{quoted}",
                f"memory/episodes/{quoted}",
                f"consolidations/{quoted}",
                f"latent/traces/{version}?include={quoted}",
                f"nothing/{quoted}",
            )
        ]
        answers.append(await served.http.post(f"/v1/priors/{quoted}/activate"))
        headers = {"x-request-id": latin, "authorization": latin, "origin": latin, "cookie": latin}
        answers.append(await served.http.get("/v1/memory/stats", headers=headers))
        for answer in answers:
            where = f"{answer.request.method} {answer.request.url} {text!a}: {answer.text!a}"
            assert answer.status_code < 500, where
            answer.json()
            for name, value in answer.headers.raw:
                assert re.fullmatch(rb"[\x20-\x7e]*", name + value), where
    assert (await served.http.get("/metrics")).status_code == 200


async def test_error_inside_vllm_still_tells_what_ran(served: Served) -> None:
    answer = await served.chat(**{"break": "before"})
    assert answer.status_code == 500
    assert answer.headers["x-latent-mode"] == "plain"
    assert answer.headers["x-latent-reason"] == "failed"


@pytest.mark.parametrize("offered", ["with space", "x" * 129, "ümlaut".encode("latin-1"), ""])
async def test_request_id_that_could_break_a_log_is_replaced(served: Served, offered: str | bytes) -> None:
    answer = await served.http.get("/healthz", headers={"x-request-id": offered})
    assert len(answer.headers["x-request-id"]) == 32


async def test_state_that_is_away_is_a_503_and_answers_go_on(served: Served) -> None:
    tables = ("nights", "labels", "traces")
    for table in tables:
        rename(served.gateway.state, table, f"no_{table}")
    for path in ("/v1/consolidations", "/v1/priors", f"/v1/latent/traces/{uuid.uuid4()}"):
        answer = await served.http.get(path)
        assert answer.status_code == 503, path
        assert answer.json()["error"]["message"].startswith("the state does not answer: ")
    answer = await served.chat()
    assert answer.status_code == 200
    for table in tables:
        rename(served.gateway.state, f"no_{table}", table)
    assert (await served.http.get("/v1/priors")).status_code == 200


def rename(state: State, old: str, new: str) -> None:
    with state.write() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")


async def test_store_that_is_away_is_a_503(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(**_: object) -> None:
        raise StoreUnavailableError("no answer")

    monkeypatch.setattr(served.gateway.store, "stats", away)
    answer = await served.http.get("/v1/memory/stats")
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "ServiceUnavailableError"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing-here", 404),
        ("GET", "/v1/latent/traces/not-a-uuid", 404),
        ("GET", "/v1/latent/traces/00000000-0000-4000-8000-000000000000", 404),
        ("GET", "/v1/latent/traces/00000000-0000-4000-8000-000000000000?include=all", 400),
        ("GET", "/v1/memory/episodes/not-a-uuid", 404),
        ("GET", "/v1/memory/episodes/00000000-0000-4000-8000-000000000000", 404),
        ("GET", "/v1/priors/v1", 404),
        ("GET", "/v1/priors/..%2F..", 404),
        ("POST", "/v1/priors/v1/activate", 404),
        ("POST", "/v1/priors/latest/activate", 404),
        ("GET", "/v1/consolidations/not-a-uuid", 404),
        ("GET", "/v1/consolidations/00000000-0000-4000-8000-000000000000", 404),
    ],
)
async def test_unknown_and_malformed_names(served: Served, method: str, path: str, status: int) -> None:
    answer = await served.http.request(method, path)
    assert answer.status_code == status


async def test_key_is_asked_for_everywhere_but_at_probes(serve: Serve) -> None:
    served = await serve(api_key="s3cret")
    for path in ("/v1/models", "/v1/memory/stats", "/v1/priors", "/tokenize", "/v1/consolidations", "/docs"):
        answer = await served.http.get(path)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["type"] == "AuthenticationError"
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await served.http.get(path)).status_code == 200, path
    assert (await served.chat()).status_code == 401


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
        ("Bearer s3cre", 401),
        ("Bearer", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
    ],
)
async def test_only_the_bearer_of_the_key_passes(serve: Serve, header: str, status: int) -> None:
    served = await serve(api_key="s3cret")
    answer = await served.http.get("/v1/models", headers={"authorization": header})
    assert answer.status_code == status
