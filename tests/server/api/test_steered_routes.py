"""What every answer of the steered routes says, and what reaches vLLM."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.types import Message

from server.api.scopes import PUBLIC
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
    """Post through bare ASGI: the body in chunks, each taken off when asked for, then nothing more."""
    ended = asyncio.Event()

    async def receive() -> Message:
        if chunks:
            chunk = chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}
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
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages", "/v1/completions", "/invocations"])
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


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        *((body, "application/json") for body in (b"{", b"[]", b"", b'"text"', b"\xff\xfe", b"[" * 100_000)),
        (b'{"reasoning_effort":"extreme"}', "application/json"),
        (b'{"reasoning_effort":7}', "application/json"),
        (b'{"model":"another"}', "application/json"),
        (b'{"n":' + b"9" * 5000 + b"}", "application/json"),
        (b'{"model":"small:high"}', "text/plain"),
        (b"model=small", "application/x-www-form-urlencoded"),
    ],
)
async def test_what_vllm_refuses_has_vllms_answer(served: Served, body: bytes, kind: str) -> None:
    headers = {"content-type": kind}
    answer = await served.http.post(CHAT, content=body, headers=headers)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(served.inner), base_url="http://vllm") as bare:
        expected = await bare.post(CHAT, content=body, headers=headers)
    assert 400 <= answer.status_code < 500
    assert (answer.status_code, answer.content) == (expected.status_code, expected.content)
    assert (answer.headers["x-latent-mode"], answer.headers["x-latent-reason"]) == ("plain", "rejected")


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

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""}
    async with asyncio.timeout(10):
        await served.app(scope | {"root_path": "", "asgi": {"spec_version": "2.3"}}, receive, send)


@pytest.mark.parametrize("unstored", [{"store": False}, {"latent": {"store": False}}])
async def test_the_same_request_streamed_and_whole_is_answered_alike_where_nothing_is_remembered(
    served: Served, unstored: dict[str, Any]
) -> None:
    told, texts = [], []
    for stream in (False, True, False, True):
        answer = await served.chat(model=f"{MODEL}:medium", stream=stream, **unstored)
        await served.gateway.remember.drain()
        told.append([answer.headers[f"x-latent-{name}"] for name in ("mode", "episodes", "reward-after")])
        texts.append(_streamed(answer.text) if stream else answer.json()["text"])
    assert told == told[:1] * 4
    assert texts == texts[:1] * 4
    assert served.gateway.store.count() == 0


def _streamed(events: str) -> str:
    lines = [line.removeprefix("data: ") for line in events.splitlines() if line.startswith("data: {")]
    return "".join(c["delta"].get("content", "") for line in lines for c in json.loads(line)["choices"])


async def test_client_that_leaves_while_steering_runs_is_counted_as_one_that_left(served: Served) -> None:
    served.engine.delay_s = 30
    messages = [{"type": "http.request", "body": chat(latent={"effort": "medium"}), "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        while not served.engine.calls:  # noqa: ASYNC110 (the engine tells nobody)
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""}
    async with asyncio.timeout(10):
        await served.app(scope | {"root_path": "", "asgi": {"spec_version": "2.3"}}, receive, send)
    counted = (await served.http.get("/metrics")).text
    assert 'requests_total{effort="medium",mode="plain",reason="client-left"} 1.0' in counted
    assert "not-rendered-as-chat" not in counted


async def test_refined_answer_tells_its_rewards_and_is_recalled(served: Served) -> None:
    refined = await served.chat("sum two and two", latent={"effort": "high"})
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


async def test_other_routes_carry_no_call_but_take_the_effort(served: Served) -> None:
    body = {"model": f"{MODEL}:high", "latent": {"left": "alone"}}
    answer = await served.http.post("/tokenize", json=body)
    assert answer.json() == {"call": False, "seen": body | {"model": MODEL}}
    assert "x-latent-mode" not in answer.headers
    unknown = await served.http.post("/tokenize", json={"model": f"{MODEL}:extreme"})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["param"] == "model"


BATCH = f"{CHAT}/batch"


def conversations(*questions: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [[{"role": "user", "content": each}] for each in questions]}


async def test_each_conversation_of_a_batch_is_steered_and_tells_so(served: Served) -> None:
    await served.chat("sum two and two", latent={"effort": "high"})
    await served.gateway.remember.drain()
    body = conversations("sum three and four", "poem of rain", "sum five and six")
    answer = await served.http.post(BATCH, json=body | {"model": f"{MODEL}:low"})
    said = [choice["latent"] for choice in answer.json()["choices"]]
    assert [each["mode"] for each in said] == ["recall", "plain", "recall"]
    assert [each["reason"] for each in said] == ["recalled", "nothing-recalled", "recalled"]
    assert answer.headers["x-latent-mode"] == answer.headers["x-latent-trace"] == "mixed"
    assert answer.headers["x-latent-effort"] == "low"
    traces = [(await served.http.get(f"/v1/latent/traces/{each['trace']}")).json() for each in said]
    assert [trace["reason"] for trace in traces] == [each["reason"] for each in said]
    assert [len(trace["episodes"]) for trace in traces] == [1, 0, 1]


async def test_batch_counts_and_sums_its_conversations(served: Served) -> None:
    body = conversations("sum two and two", "sum three and four") | {
        "latent": {"effort": "high", "store": False}
    }
    answer = (await served.http.post(BATCH, json=body)).json()
    traces = [
        (await served.http.get(f"/v1/latent/traces/{choice['latent']['trace']}")).json()
        for choice in answer["choices"]
    ]
    spent = sum(trace["usage"]["forward_tokens"] for trace in traces)
    assert answer["usage"]["latent"]["forward_tokens"] == spent > 0
    assert served.gateway.metrics.summary()["requests"]["total"] == 2


async def test_batch_of_one_kind_reads_as_one_answer_and_bare_ones_stay_bare(served: Served) -> None:
    plain = await served.http.post(BATCH, json=conversations("one", "two") | {"latent": {"effort": "none"}})
    assert (plain.headers["x-latent-mode"], plain.headers["x-latent-reason"]) == ("plain", "effort-none")
    assert not any("latent" in choice for choice in plain.json()["choices"])
    one = await served.http.post(BATCH, json=conversations("sum two and two"))
    assert one.headers["x-latent-trace"] == one.json()["choices"][0]["latent"]["trace"]
    refused = await served.http.post(BATCH, json=conversations("one") | {"latent": {"k": 0}})
    assert (refused.status_code, refused.headers["x-latent-reason"]) == (400, "rejected")


@pytest.mark.parametrize("path", sorted(PUBLIC))
async def test_nobody_without_the_key_can_make_us_read_a_body(serve: Serve, path: str) -> None:
    served = await serve(api_key="s3cret")
    chunks = [b" " * 1000] * 10
    left, sent = list(chunks), list[Message]()
    await raw_post(served, path, left, sent)
    assert sent[0]["status"] in (404, 405)
    assert left == chunks, "no chunk was asked for"


async def test_failed_self_check_answers_plainly_and_says_which(serve: Serve) -> None:
    served = await serve(Parts(checks=[CheckFound(), CheckFound(name="key-hook", ok=False)]))
    answer = await served.chat(latent={"effort": "medium"})
    assert answer.status_code == 200
    assert answer.headers["x-latent-reason"] == "self-check-failed:key-hook"
