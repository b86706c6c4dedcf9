"""What refining spent stands in the answer's usage, and nothing else of the answer changes."""

import json
from typing import Any

import pytest
from openai import AsyncOpenAI
from starlette.types import Message

from model.engine import Usage
from server.api.usage import Told, with_usage
from tests.server.api.conftest import CHAT, Served
from tests.server.api.inner import MODEL

REFINE = {"latent": {"effort": "high", "store": False}}
SPENT = Usage(prompt_tokens=30, generated_tokens=4, forward_tokens=99)
LATENT = {"prompt_tokens": 30, "generated_tokens": 4, "forward_tokens": 99}


@pytest.fixture
def client(served: Served) -> AsyncOpenAI:
    return AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=served.http, max_retries=0)


def ask() -> Any:
    return {"model": MODEL, "messages": [{"role": "user", "content": "sum two and two"}]}


async def traced(served: Served, headers: Any) -> dict[str, int]:
    trace = await served.http.get(f"/v1/latent/traces/{headers['x-latent-trace']}")
    usage: dict[str, int] = trace.json()["usage"]
    assert usage["generated_tokens"] > 0
    return usage


async def test_chat_completion_says_what_its_trace_says(served: Served, client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(**ask(), extra_body=REFINE)
    usage = raw.parse().usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.total_tokens) == (7, 7 + usage.completion_tokens)
    assert usage.model_extra == {"latent": await traced(served, raw.headers)}
    assert raw.headers["content-length"] == str(len(raw.content))


async def test_streamed_usage_chunk_says_it_too(served: Served, client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        **ask(), stream=True, stream_options={"include_usage": True}, extra_body=REFINE
    )
    chunks = [chunk async for chunk in raw.parse()]
    assert [chunk.usage is not None for chunk in chunks] == [False, True]
    assert chunks[-1].usage.model_extra == {"latent": await traced(served, raw.headers)}


async def test_stream_without_usage_says_nothing(served: Served) -> None:
    answer = await served.chat(**REFINE, stream=True)
    assert answer.headers["x-latent-mode"] == "refined"
    assert b"latent" not in answer.content
    assert answer.content.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_responses_say_it_in_their_own_usage(served: Served, client: AsyncOpenAI, stream: bool) -> None:
    raw = await client.responses.with_raw_response.create(
        model=MODEL, input="sum", stream=stream, extra_body=REFINE
    )
    if stream:
        *_, last = [event async for event in raw.parse()]
        assert last.type == "response.completed"
        usage = last.response.usage
    else:
        usage = raw.parse().usage
    assert usage.input_tokens == 7
    assert usage.model_extra == {"latent": await traced(served, raw.headers)}


@pytest.mark.parametrize(
    ("path", "effort"),
    [(CHAT, "none"), (CHAT, "low"), ("/v1/messages", "medium"), ("/v1/completions", "high")],
)
async def test_answer_that_was_not_refined_or_has_no_such_usage_is_left_alone(
    served: Served, path: str, effort: str
) -> None:
    answer = await served.http.post(path, json=ask() | {"latent": {"effort": effort}})
    assert answer.status_code == 200
    assert "latent" not in answer.json().get("usage", {})


async def sent_through(
    chunks: list[bytes],
    kind: str,
    spent: Usage = SPENT,
    status: int = 200,
    *headers: tuple[bytes, bytes],
) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    through = with_usage(send, lambda: Told(spent))
    head = [(b"content-type", kind.encode()), (b"content-length", b"%d" % sum(map(len, chunks))), *headers]
    await through({"type": "http.response.start", "status": status, "headers": head})
    for number, chunk in enumerate(chunks, 1):
        more = number < len(chunks)
        await through({"type": "http.response.body", "body": chunk, "more_body": more})
    return sent


def body(messages: list[Message]) -> bytes:
    return b"".join(message["body"] for message in messages[1:])


async def test_all_but_the_usage_keeps_its_bytes() -> None:
    raw = '{"text":"é \\" usage","number":-0.123456789012345678,"usage":{"total_tokens":3}}'.encode()
    sent = await sent_through([raw[:9], raw[9:]], "application/json; charset=utf-8")
    expected = raw.replace(
        b"3}}", b'3,"latent":' + json.dumps(LATENT, separators=(",", ":")).encode() + b"}}"
    )
    # Shortest spelling of the same float: vLLM never writes more digits than that.
    assert body(sent) == expected.replace(b"0.123456789012345678", b"0.12345678901234568")
    assert dict(sent[0]["headers"])[b"content-length"] == b"%d" % len(body(sent))


@pytest.mark.parametrize(
    "raw",
    [b"not JSON", b"[1]", b"{}", b'{"usage":null}', b'{"usage":{"a":NaN}}', b'{"response":{"usage":1}}'],
)
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_what_has_no_usage_to_add_to_passes_as_it_came(raw: bytes, kind: str) -> None:
    framed = b"data: " + raw + b"\n\n" if kind == "text/event-stream" else raw
    assert body(await sent_through([framed], kind)) == framed


@pytest.mark.parametrize("cut", range(1, 40, 3))
async def test_stream_may_be_cut_anywhere(cut: int) -> None:
    first = 'data: {"choices":[{"delta":{"content":"the \\"usage\\" é"}}]}\n\n'.encode()
    raw = first + b'data: {"usage":{"total_tokens":3}}\n\ndata: [DONE]\n\n'
    sent = await sent_through([raw[i : i + cut] for i in range(0, len(raw), cut)], "text/event-stream")
    lines = body(sent).split(b"\n\n")
    assert lines[0] + b"\n\n" == first
    assert json.loads(lines[1][6:]) == {"usage": {"total_tokens": 3, "latent": LATENT}}
    assert lines[2:] == [b"data: [DONE]", b""]


async def test_whole_events_are_not_held_back() -> None:
    events = [b'data: {"n":1}\n\n', b'data: {"n":2}\n\n', b""]
    sent = await sent_through(events, "text/event-stream")
    assert [message["body"] for message in sent[1:]] == events


async def test_errors_other_kinds_and_packed_bodies_are_left_alone() -> None:
    raw = b'{"usage":{"total_tokens":3}}'
    assert body(await sent_through([raw], "application/json", status=400)) == raw
    assert body(await sent_through([raw], "text/plain")) == raw
    assert body(await sent_through([raw], "application/json", Usage())) == raw
    packed = (b"content-encoding", b"gzip")
    assert body(await sent_through([raw], "application/json", SPENT, 200, packed)) == raw
