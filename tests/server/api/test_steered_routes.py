"""What every answer of the steered routes says, and what reaches vLLM."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message

from tests.server.api.conftest import CHAT, CheckFound, Parts, Serve, Served
from tests.server.api.inner import MODEL

HEADERS = {
    "x-latent-mode",
    "x-latent-reason",
    "x-latent-effort",
    "x-latent-prior",
    "x-latent-episodes",
    "x-latent-trace",
}


async def raw_post(served: Served, path: str, chunks: list[bytes], sent: list[Message]) -> None:
    """Post through bare ASGI: the body in chunks, then nothing until the answer has ended."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks[:-1]]
    messages.append({"type": "http.request", "body": chunks[-1], "more_body": False})
    ended = asyncio.Event()

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            ended.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("gateway", 80),
    }
    await served.app(scope, receive, send)


def chat(**fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "sum"}], **fields}).encode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages", "/v1/completions"])
async def test_every_answer_tells_what_ran(served: Served, path: str, stream: bool) -> None:
    answer = await served.http.post(path, json={"model": MODEL, "stream": stream})
    assert answer.status_code == 200
    assert set(answer.headers) >= HEADERS
    assert answer.headers["x-latent-mode"] == "plain"
    assert answer.headers["x-latent-effort"] == "low"
    assert answer.headers["x-latent-episodes"] == ""
    assert "x-latent-reward-before" not in answer.headers


@pytest.mark.parametrize(
    ("path", "fields", "reason"),
    [
        (CHAT, {}, "memory-empty"),
        (CHAT, {"latent": {"effort": "none"}}, "effort-none"),
        (CHAT, {"model": f"{MODEL}:none"}, "effort-none"),
        ("/v1/completions", {"latent": {"effort": "high"}}, "completions-not-steered"),
    ],
)
async def test_plain_answer_says_why(served: Served, path: str, fields: dict[str, Any], reason: str) -> None:
    answer = await served.http.post(path, json={"model": MODEL} | fields)
    assert (answer.headers["x-latent-mode"], answer.headers["x-latent-reason"]) == ("plain", reason)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"latent": {"effort": "extreme"}}, 400, "latent.effort"),
        ({"latent": {"effort": "low", "prior": "v999"}}, 400, "latent.prior"),
        ({"reasoning_effort": "extreme"}, 400, "reasoning_effort"),
        ({"model": f"{MODEL}:extreme"}, 404, "model"),
        ({"model": "another"}, 404, "model"),
    ],
)
async def test_refusal_names_the_field_and_is_plain(
    served: Served, fields: dict[str, Any], status: int, param: str
) -> None:
    answer = await served.chat(**fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, status)
    assert set(error) == {"message", "type", "param", "code"}
    assert (answer.headers["x-latent-mode"], answer.headers["x-latent-reason"]) == ("plain", "rejected")
    assert set(answer.headers) >= HEADERS


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b'"text"', b"\xff\xfe", b"[" * 100_000])
async def test_body_that_is_no_json_object_is_refused(served: Served, body: bytes) -> None:
    answer = await served.http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "body"
    assert answer.headers["x-latent-reason"] == "rejected"


async def test_body_that_is_too_long_is_refused_unread(served: Served) -> None:
    headers = {"content-type": "application/json", "content-length": str(2**40)}
    answer = await served.http.post(CHAT, content=b"{}", headers=headers)
    assert answer.status_code == 413


async def test_vllm_sees_the_body_without_our_fields(served: Served) -> None:
    answer = await served.chat(model=f"{MODEL}:low", latent={"k": 2}, user="é", reasoning_effort="high")
    seen = answer.json()["seen"]
    assert "latent" not in seen
    assert (seen["model"], seen["user"], seen["reasoning_effort"]) == (MODEL, "é", "high")


async def test_body_in_chunks_reaches_vllm_whole(served: Served) -> None:
    body = chat(latent={"effort": "none"})
    sent: list[Message] = []
    await raw_post(served, CHAT, [body[:5], body[5:9], body[9:]], sent)
    assert sent[0]["status"] == 200
    answer = json.loads(b"".join(message["body"] for message in sent[1:]))
    assert int(answer["length"]) == len(json.dumps(answer["seen"]))


async def test_stream_is_not_held_back(served: Served) -> None:
    served.inner.state.release.clear()
    sent: list[Message] = []
    request = asyncio.create_task(raw_post(served, CHAT, [chat(stream=True)], sent))
    async with asyncio.timeout(10):
        while len(sent) < 2:  # noqa: ASYNC110 (the test plays the client)
            await asyncio.sleep(0.01)
    assert b"data:" in sent[1]["body"]
    assert not request.done()
    served.inner.state.release.set()
    await request
    assert b"[DONE]" in b"".join(message["body"] for message in sent[1:])


async def test_client_that_leaves_ends_its_stream(served: Served) -> None:
    served.inner.state.release.clear()
    first = asyncio.Event()
    messages = [{"type": "http.request", "body": chat(stream=True), "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await first.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            first.set()

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b""}
    async with asyncio.timeout(10):
        await served.app(scope | {"root_path": "", "asgi": {"spec_version": "2.3"}}, receive, send)


async def test_refined_answer_tells_its_rewards_and_is_recalled(served: Served) -> None:
    refined = await served.chat("sum two and two", latent={"effort": "medium"})
    assert refined.headers["x-latent-mode"] == "refined"
    before, after = (float(refined.headers[f"x-latent-reward-{when}"]) for when in ("before", "after"))
    assert after > before
    await served.gateway.remember.drain()
    similar = await served.chat("sum three and four")
    assert similar.headers["x-latent-mode"] == "recall"
    episode = similar.headers["x-latent-episodes"]
    trace = await served.http.get(f"/v1/latent/traces/{similar.headers['x-latent-trace']}")
    assert [each["id"] for each in trace.json()["episodes"]] == [episode]
    unrelated = await served.chat("poem of rain")
    assert unrelated.headers["x-latent-reason"] == "nothing-recalled"


async def test_other_routes_carry_no_call(served: Served) -> None:
    answer = await served.http.get("/tokenize")
    assert answer.json() == {"call": False}
    assert "x-latent-mode" not in answer.headers


async def test_failed_self_check_answers_plainly_and_says_which(serve: Serve) -> None:
    served = await serve(Parts(checks=[CheckFound(), CheckFound(name="key-hook", ok=False)]))
    answer = await served.chat(latent={"effort": "medium"})
    assert answer.status_code == 200
    assert answer.headers["x-latent-reason"] == "self-check-failed:key-hook"
