"""Steered requests through vLLM's own app, with a steering that always injects."""

import asyncio
import base64
import io
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from model.engine import SteeredPrompt
from model.engine_time import EngineTime, engine_time
from server.engine.injection import install
from server.engine.launch import Launched
from server.steering.outcome import Outcome
from server.steering.prompt import Options, RenderedPrompt, SteeringRejectedError
from server.steering.request import SteeringCall, current_call
from server.tracing import Tracing
from tests.server.steering.fakes import options as options_of

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

CHAT = "/v1/chat/completions"


class Injecting:
    """Steering that gives every request the same latent and remembers what it was shown."""

    def __init__(self, latent: torch.Tensor) -> None:
        self.outcome: Outcome | Exception = Outcome("recall", "recalled", latent)
        self.seen: list[RenderedPrompt] = []

    async def steer(self, prompt: RenderedPrompt, options: Options, trace_id: str) -> Outcome:
        self.seen.append(prompt)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest_asyncio.fixture(loop_scope="session")
async def steering(launched: Launched) -> AsyncIterator[Injecting]:
    engine, renderer = launched.engine, launched.app.state.online_renderer
    noise = torch.randn(engine.space.shape, generator=torch.Generator().manual_seed(5))
    neutral = engine.neutral_latent()
    steering = Injecting(neutral + noise / noise.norm() * neutral.norm() * 2)
    unhooked = renderer.preprocess_chat, launched.engine.llm.generate
    install(launched.app.state, engine, steering.steer)
    yield steering
    renderer.preprocess_chat, launched.engine.llm.generate = unhooked


@contextmanager
def called(**options: Any) -> Iterator[SteeringCall]:
    call = SteeringCall(options_of(**({"effort": "low", "effort_source": "latent.effort"} | options)))
    token = current_call.set(call)
    try:
        yield call
    finally:
        current_call.reset(token)


def body(launched: Launched, text: str = "Name three rivers.", **more: Any) -> dict[str, Any]:
    return {
        "model": launched.app.state.openai_serving_models.base_model_paths[0].name,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 24,
        "temperature": 0,
        **more,
    }


async def answer(http: httpx.AsyncClient, sent: dict[str, Any], path: str = CHAT) -> dict[str, Any]:
    response = await http.post(path, json=sent)
    assert response.status_code == 200, response.text
    return dict(response.json())


def text_of(given: dict[str, Any]) -> str:
    return str(given["choices"][0]["message"]["content"])


async def bare(launched: Launched, sent: dict[str, Any]) -> list[int]:
    """Return the tokens that vLLM's engine gives to the prompt without any of our code in between."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    tokens = launched.engine.render(sent["messages"])
    params = SamplingParams(max_tokens=sent["max_tokens"], temperature=0)
    async for output in launched.engine.llm.generate(tokens_input(list(tokens)), params, "bare"):
        last = output
    return list(last.outputs[0].token_ids)


async def test_effort_none_and_no_latent_equal_bare_vllm(
    launched: Launched, http: httpx.AsyncClient, steering: Injecting
) -> None:
    sent = body(launched, return_token_ids=True)
    expected = await bare(launched, sent)
    with called(effort="none") as call:
        plain = await answer(http, sent)
    assert call.outcome is not None
    assert call.outcome.reason == "effort-none"
    assert not steering.seen
    steering.outcome = Outcome("plain", "nothing-recalled")
    with called() as call:
        nothing = await answer(http, sent)
    assert call.outcome is steering.outcome
    assert plain["choices"][0]["token_ids"] == nothing["choices"][0]["token_ids"] == expected


async def test_injected_latent_changes_the_answer_but_not_the_usage(
    launched: Launched, http: httpx.AsyncClient, steering: Injecting
) -> None:
    sent = body(launched)
    plain = await answer(http, sent)
    with called():
        # Fills the prefix cache: in bfloat16 a prompt that is computed in two parts rounds to another answer.
        await answer(http, sent)
        steered = await answer(http, sent)
        again = await answer(http, sent)
    assert text_of(steered) != text_of(plain)
    assert text_of(again) == text_of(steered)
    assert steered["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    details = again["usage"]["prompt_tokens_details"]
    assert 0 < details["cached_tokens"] <= again["usage"]["prompt_tokens"]


async def test_steering_sees_what_the_request_asks_for(
    launched: Launched, http: httpx.AsyncClient, steering: Injecting
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    sent = body(launched, "How many?", temperature=0.5, top_p=0.9, seed=7, stop=["\n\n"]) | {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    }
    with called():
        given = await answer(http, sent)
    (seen,) = steering.seen
    assert seen.question == "How many?"
    assert "How many?" in seen.text
    assert seen.token_ids == launched.engine.render(sent["messages"])
    assert seen.format_rules == {"json_schema": schema}
    decoding = seen.decoding
    assert (decoding.max_tokens, decoding.temperature, decoding.seed, seen.asked_tokens) == (24, 0.5, 7, 24)
    assert text_of(given).lstrip().startswith("{")


async def test_steered_answers_keep_n_seed_logprobs_and_stop(
    launched: Launched, http: httpx.AsyncClient, steering: Injecting
) -> None:
    sent = body(launched, temperature=1.0, n=2, seed=11, logprobs=True, top_logprobs=2, max_tokens=12)
    with called():
        first, again = await answer(http, sent), await answer(http, sent)
        greedy = await answer(http, body(launched))
        stop = text_of(greedy)[4:7]
        stopped = await answer(http, body(launched, stop=[stop]))
    assert len(first["choices"]) == 2
    contents = [[choice["message"]["content"] for choice in given["choices"]] for given in (first, again)]
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[0][1]
    assert len(first["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert text_of(stopped) == text_of(greedy)[: text_of(greedy).index(stop)]
    assert stopped["choices"][0]["finish_reason"] == "stop"


async def test_streamed_answer_equals_the_whole_one_and_counts_real_tokens(
    launched: Launched, http: httpx.AsyncClient, steering: Injecting
) -> None:
    sent = body(launched)
    with called():
        whole = await answer(http, sent)
        streaming = sent | {"stream": True, "stream_options": {"include_usage": True}}
        response = await http.post(CHAT, json=streaming)
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    pieces = [e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]]
    assert "".join(pieces) == text_of(whole)
    assert events[-1]["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


@pytest.mark.parametrize("stream", [False, True])
async def test_decoding_is_a_span_whose_child_the_engines_is_and_its_time_is_the_engines(
    launched: Launched,
    http: httpx.AsyncClient,
    steering: Injecting,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    exporter, told = InMemorySpanExporter(), []
    add_request = launched.engine.llm.add_request

    async def told_whose(*args: Any, trace_headers: Any = None, **kwargs: Any) -> Any:
        told.append(trace_headers)
        return await add_request(*args, **kwargs)  # this engine makes no spans

    monkeypatch.setattr(launched.engine.llm, "add_request", told_whose)
    tracing, clock = Tracing(exporter), EngineTime()
    token, begun = engine_time.set(clock), time.monotonic()
    try:
        with called(), tracing.request("chat", {}, {}) as request:
            await launched.engine.keys([launched.engine.render([{"role": "user", "content": "Hello."}])])
            await http.post(CHAT, json=body(launched, stream=stream))
    finally:
        engine_time.reset(token)
    elapsed = time.monotonic() - begun
    assert tracing.flush()
    decode, chat = exporter.get_finished_spans()
    assert (decode.name, chat.name) == ("decode", "chat")
    assert decode.context is not None
    assert request.get_span_context() == chat.context == decode.parent
    for one in (decode, chat):
        assert one.attributes is not None
        assert one.attributes["gen_ai.usage.output_tokens"] == 24
        assert one.attributes["gen_ai.response.finish_reasons"] == ("length",)
    parents = [headers["traceparent"].split("-")[2] for headers in told]
    assert parents == [f"{one.context.span_id:016x}" for one in (chat, decode) if one.context]
    assert clock.used
    assert 0 < clock.seconds <= elapsed
    await asyncio.to_thread(tracing.close)


async def test_responses_are_steered_too(
    launched: Launched, http: httpx.AsyncClient, steering: Injecting
) -> None:
    sent = {
        "model": body(launched)["model"],
        "input": "Name three rivers.",
        "max_output_tokens": 24,
        "temperature": 0,
    }
    plain = await answer(http, sent, "/v1/responses")
    with called() as call:
        steered = await answer(http, sent, "/v1/responses")
    assert call.outcome is steering.outcome
    assert steering.seen[0].decoding.max_tokens == 24
    assert steered["output"] != plain["output"]
    assert steered["usage"]["input_tokens"] == plain["usage"]["input_tokens"]


async def test_tokenize_is_untouched(
    launched: Launched, http: httpx.AsyncClient, steering: Injecting
) -> None:
    sent = body(launched)
    given = await answer(http, {k: sent[k] for k in ("model", "messages")}, "/tokenize")
    assert given["tokens"] == list(launched.engine.render(sent["messages"]))
    assert not steering.seen


SCHEMA = {
    "type": "object",
    "properties": {"salty": {"type": "boolean"}},
    "required": ["salty"],
    "additionalProperties": False,
}
TOSS = {
    "type": "function",
    "function": {
        "name": "toss",
        "description": "Toss a coin.",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        "strict": True,
    },
}
CALL = '<tool_call>\n{"name": "toss", "arguments": {}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "toss"}}


def spelt(launched: Launched, *texts: str) -> dict[str, Any]:
    """Return what keeps an answer to the texts' letters, and ends it as soon as it may end.

    Random weights ramble where grammars let them.
    """
    encode, end = launched.engine.tokenizer.encode, launched.engine.tokenizer.eos_token_id
    tokens = {token for letter in "".join(texts) for token in encode(letter, add_special_tokens=False)}
    return {"allowed_token_ids": [*sorted(tokens), end], "logit_bias": {str(end): 100}}


def without_spaces(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("asked", "spells", "obeys"),
    [
        ({"tools": [TOSS], "tool_choice": "required"}, [CALL], re.escape(without_spaces(CALL))),
        ({"tools": [TOSS], "tool_choice": NAMED}, [CALL], re.escape(without_spaces(CALL))),
        ({"structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}}, [], "[0-9]{3}-[a-f]{2}"),
        ({"structured_outputs": {"grammar": 'root ::= "ab" | "cd"'}}, [], "ab|cd"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
            ['{"salty":true}', '{"salty":false}'],
            r'\{"salty":(true|false)\}',
        ),
        ({"max_tokens": 4, "min_tokens": 4}, ["A", "B"], "[AB]{4}"),
        ({"logit_bias": {"49": 100}, "max_tokens": 4}, [], "A{4}"),
        ({"logit_bias": {"49": 100}, "stop": "AAA", "include_stop_str_in_output": True}, [], "AAA"),
    ],
)
async def test_all_that_is_sampled_obeys_all_that_the_request_asks_for(
    launched: Launched,
    http: httpx.AsyncClient,
    steering: Injecting,
    asked: dict[str, Any],
    spells: list[str],
    obeys: str,
) -> None:
    steering.outcome = Outcome("plain", "nothing-recalled")
    sent = body(launched, "Toss a coin.", max_tokens=96, seed=5) | asked
    if spells:
        sent |= spelt(launched, *spells)
    with called():
        await answer(http, sent)
    (seen,) = steering.seen
    latent = launched.engine.neutral_latent()
    prompts = [SteeredPrompt(seen.token_ids), SteeredPrompt(seen.token_ids, latent)] * 2
    decodings = [
        replace(seen.decoding, temperature=temperature, seed=seed, logprobs=True)
        for temperature, seed in ((0.0, None), (0.0, None), (1.0, 1), (1.0, 2))
    ]
    for sampled in await launched.engine.generate(prompts, decodings):
        assert re.fullmatch(obeys, without_spaces(sampled.text)), sampled.text


async def test_rejection_names_the_field(
    launched: Launched, http: httpx.AsyncClient, steering: Injecting
) -> None:
    steering.outcome = SteeringRejectedError("there is no prior v9", "latent.prior")
    with called():
        response = await http.post(CHAT, json=body(launched, stream=True))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "latent.prior"


async def test_failures_of_steering_answer_plainly(
    launched: Launched, http: httpx.AsyncClient, steering: Injecting
) -> None:
    plain = await answer(http, body(launched))
    outcomes: list[tuple[Outcome | Exception, str]] = [
        (RuntimeError("boom"), "steering-failed"),
        (
            Outcome("recall", "recalled", torch.full(launched.engine.space.shape, float("nan"))),
            "latent-refused",
        ),
    ]
    for outcome, reason in outcomes:
        steering.outcome = outcome
        with called() as call:
            given = await answer(http, body(launched))
        assert text_of(given) == text_of(plain)
        assert call.outcome is not None
        assert (call.outcome.mode, call.outcome.reason) == ("plain", reason)


def embeds_part(data: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "prompt_embeds", "data": data}]}]}


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (CHAT, embeds_part),
        ("/tokenize", embeds_part),
        ("/v1/completions", lambda data: {"prompt_embeds": data, "prompt": ""}),
        ("/v1/completions", lambda data: {"prompt_embeds": [data]}),
    ],
)
async def test_prompt_embeddings_of_clients_are_refused(
    launched: Launched, http: httpx.AsyncClient, path: str, content: Any
) -> None:
    file = io.BytesIO()
    torch.save(torch.zeros(4, launched.engine.space.hidden_size), file)
    sent = {"model": body(launched)["model"]} | content(base64.b64encode(file.getvalue()).decode())
    response = await http.post(path, json=sent)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt_embeds"


async def test_responses_take_no_prompt_embeddings(launched: Launched, http: httpx.AsyncClient) -> None:
    part = {"type": "prompt_embeds", "data": "AAAA"}
    sent = {"model": body(launched)["model"], "input": [{"role": "user", "content": [part]}]}
    assert (await http.post("/v1/responses", json=sent)).status_code == 400


async def test_vllms_embedding_marker_is_plain_text_and_no_token(
    launched: Launched, http: httpx.AsyncClient
) -> None:
    tokens = launched.engine.tokenizer.encode("<prompt_embeds>", add_special_tokens=False)
    assert len(tokens) > 1
    await answer(http, body(launched, "What does <prompt_embeds> mean?", max_tokens=2))
    beyond = launched.engine.llm.model_config.get_vocab_size()
    sent = {"model": body(launched)["model"], "prompt": [1, beyond], "max_tokens": 1}
    assert (await http.post("/v1/completions", json=sent)).status_code == 400
    assert not launched.engine.llm.errored
