"""The gateway in front of vLLM's own app: vLLM's answers stay its own, and every route knows our names."""

import asyncio
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry

from config.settings import Settings
from server.api.scopes import TABLE, Rule, is_public, rule_of
from server.app import create_app
from server.engine.injection import install
from server.engine.launch import Launched
from server.engine.vllm import BEHIND
from server.gateway import Gateway
from server.wiring import assemble

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]

CHAT, BATCH = "/v1/chat/completions", "/v1/chat/completions/batch"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
RESPONSES, COMPLETIONS = "/v1/responses", "/v1/completions"
HELLO = [{"role": "user", "content": "Name three rivers."}]
LENGTH = {"max_tokens": 4, "temperature": 0}
TOKENS: dict[str, Any] = {"token_ids": [504, 2], "finish_reason": "stop", "index": 0}

ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HELLO, **LENGTH},
    BATCH: {"messages": [HELLO, HELLO], **LENGTH},
    COMPLETIONS: {"prompt": "Rivers:", **LENGTH},
    RESPONSES: {"input": "Name three rivers.", "max_output_tokens": 4, "temperature": 0},
    MESSAGES: {"messages": HELLO, **LENGTH},
    COUNT: {"messages": HELLO},
    "/tokenize": {"messages": HELLO},
    "/detokenize": {"tokens": [504, 505]},
    "/generative_scoring": {"query": "Is it a river? ", "items": ["Rhine"], "label_token_ids": [504, 505]},
    "/v1/systemone": {"state": "The Rhine is long.", "questions": {"q": {"type": "boolean"}}},
    "/invocations": {"messages": HELLO, **LENGTH},
    f"{CHAT}/render": {"messages": HELLO, **LENGTH},
    f"{COMPLETIONS}/render": {"prompt": "Rivers:", **LENGTH},
    f"{RESPONSES}/render": {"input": "Name three rivers."},
    f"{MESSAGES}/render": {"messages": HELLO, **LENGTH},
    f"{CHAT}/derender": {"generate_response": {"request_id": "a", "choices": [TOKENS]}},
    f"{COMPLETIONS}/derender": {"generate_responses": [{"request_id": "a", "choices": [TOKENS]}]},
    "/inference/v1/generate": {"token_ids": [504, 505], "sampling_params": LENGTH},
}
"""How each route that takes a model's name is asked."""
UNREAD = {"/invocations": 200, "/v1/systemone": 501}
"""What an unknown name gets where it is not read: at SageMaker's door, and for want of a model that can."""

HOW: list[dict[str, Any]] = [
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.05},
    {"temperature": 1.0, "seed": 3, "n": 2, "logprobs": True, "top_logprobs": 2},
    {"temperature": 0, "prompt_logprobs": 1},
    {"temperature": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "bad_words": ["river"]},
    {"temperature": 1.0, "seed": 4, "min_tokens": 2, "ignore_eos": True, "stop": ["."]},
    {"temperature": 1.0, "seed": 5, "logit_bias": {"100": 5}},
    {"temperature": 1.0, "seed": 6, "structured_outputs": {"choice": ["yes", "no"]}},
    {"temperature": 1.0, "seed": 7, "structured_outputs": {"regex": "[0-9]{1,3}"}},
]
"""Ways of drawing that vLLM has code of its own for."""

OWN = re.compile(
    r'"(?:id|created|created_at|completed_at|request_id|trace_id|metrics|item_id|cached_tokens|created_cache_tokens)":\s*'
    r'(?:"[^"]*"|[0-9.]+)'
)
"""What differs between two answers to one request."""
FRACTION = re.compile(r"[0-9]+\.[0-9]+(?:e-?[0-9]+)?")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(
    launched: Launched, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the whole gateway, which stands in front of the app that `http` asks directly."""
    renderer = launched.app.state.online_renderer
    unhooked = renderer.preprocess_chat, launched.engine.llm.generate

    @asynccontextmanager
    async def opener(
        settings: Settings, registry: CollectorRegistry, _: Callable[[], None]
    ) -> AsyncIterator[Gateway]:
        async with assemble(
            settings,
            registry,
            engine=launched.engine,
            inner=launched.app,
            served=lambda: {name(launched)},
            engine_answers=alive,
            checks=[],
            send_night=logging.info,
        ) as parts:
            install(launched.app.state, launched.engine, parts.steering.steer, parts.steering.answered)
            yield parts

    async def alive() -> bool:
        return True

    folder: Path = tmp_path_factory.mktemp("gateway")
    app = create_app(
        settings.model_copy(
            update={"data_dir": folder, "night_episodes": 0, "explore_share": 0, "api_key": "s3cret"}
        ),
        opener=opener,
        registry=CollectorRegistry(),
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport,
            base_url="http://localhost",
            timeout=60,
            headers={"authorization": "Bearer s3cret"},
        ) as client,
    ):
        await app.state.readiness.settled()
        yield client
    renderer.preprocess_chat, launched.engine.llm.generate = unhooked


def name(launched: Launched) -> str:
    return str(launched.app.state.openai_serving_models.base_model_paths[0].name)


def naming(app: FastAPI) -> set[str]:
    """Return the routes of vLLM's whose JSON body has a `model`, by their schema."""
    schema = app.openapi()
    components = schema["components"]["schemas"]

    def fields(part: dict[str, Any]) -> set[str]:
        if "$ref" in part:
            return fields(components[part["$ref"].rpartition("/")[2]])
        found = set(part.get("properties", {}))
        for other in (*part.get("anyOf", ()), *part.get("oneOf", ()), *part.get("allOf", ())):
            found |= fields(other)
        return found

    return {
        path
        for path, operations in schema["paths"].items()
        for kind in operations.get("post", {}).get("requestBody", {}).get("content", {}).values()
        if "model" in fields(kind["schema"])
    }


async def test_embeddings_and_searches_have_the_keys_of_requests(
    gateway: httpx.AsyncClient, launched: Launched
) -> None:
    text = "Which is longer, the Rhine or the Seine?"
    asked = {"model": name(launched), "messages": [{"role": "user", "content": text}], **LENGTH}
    choices = {"structured_outputs": {"choice": ["Rhine", "Seine"]}, "latent": {"effort": "medium"}}
    answer = await gateway.post(CHAT, json=asked | choices)
    assert answer.headers["x-latent-mode"] == "calibrated"
    while (await gateway.get("/v1/memory/stats")).json()["pending_writes"]:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    found = (await gateway.post("/v1/memory/search", json={"text": text, "k": 1})).json()["data"]
    assert text in found[0]["episode"]["prompt_text"]
    assert found[0]["similarity"] > 0.9999

    tokens = (await gateway.post("/tokenize", json=asked)).json()["tokens"]
    embed = {"model": name(launched), "input": [tokens, tokens[:-1]]}
    by_tokens = (await gateway.post("/v1/embeddings", json=embed)).json()
    by_text = (await gateway.post("/v1/embeddings", json=embed | {"input": text})).json()
    assert by_text["usage"]["prompt_tokens"] == len(tokens)
    assert by_text["data"][0]["embedding"] == pytest.approx(by_tokens["data"][0]["embedding"], abs=1e-4)
    assert by_tokens["data"][0]["embedding"] != pytest.approx(by_tokens["data"][1]["embedding"], abs=1e-2)
    for unknown in (2**31, -1, 2**70):
        refused = await gateway.post("/v1/embeddings", json=embed | {"input": [1, unknown]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")


def said(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and the body without ids, times and the last digits of fractions."""
    return answer.status_code, FRACTION.sub(lambda found: f"{float(found[0]):.3f}", OWN.sub("", answer.text))


async def test_every_route_that_takes_a_models_name_takes_the_effort(
    launched: Launched, http: httpx.AsyncClient, gateway: httpx.AsyncClient
) -> None:
    assert naming(launched.app) <= ASKED.keys(), "say in ASKED how the new route is asked"
    assert len(naming(launched.app)) >= 10
    wrong = {}
    for path, body in ASKED.items():
        unknown = await http.post(path, json=body | {"model": "no-such-model"})
        expected = await http.post(path, json=body | {"model": name(launched)})
        answer = await gateway.post(path, json=body | {"model": f"{name(launched)}:none"})
        read = unknown.status_code == UNREAD.get(path, 404)
        if not read or answer.status_code == 404 or said(answer) != said(expected):
            wrong[path] = (said(unknown), said(expected), said(answer))
    assert not wrong


BAD: list[tuple[str, Any]] = [
    *(
        (path, raw)
        for path in (CHAT, BATCH, MESSAGES, COUNT, RESPONSES, COMPLETIONS, "/tokenize")
        for raw in (
            b"{",
            b"[]",
            b"",
            b'"text"',
            b"\xff\xfe",
            b"[" * 100_000,
            b"{}",
            b'{"n":' + b"9" * 5000 + b"}",
        )
    ),
    *(("/invocations", raw) for raw in (b"{", b"[]", b"{}")),
    (CHAT, {"messages": HELLO, "reasoning_effort": "extreme"}),
    (CHAT, {"messages": HELLO, "reasoning_effort": 3}),
    (RESPONSES, {"input": "x", "reasoning": {"effort": "extreme"}}),
    (RESPONSES, {"input": "x", "reasoning": "high"}),
    (CHAT, {"messages": "Hello"}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": HELLO, "temperature": -1}),
    (CHAT, {"messages": HELLO, "temperature": float("nan")}),
    (CHAT, {"messages": HELLO, "max_tokens": 0}),
    (CHAT, {"messages": HELLO, "max_tokens": 10**30}),
    (CHAT, {"messages": HELLO, "n": "many"}),
    (CHAT, {"messages": [{"role": "user", "content": "word " * 3000}]}),
    (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}),
    (CHAT, {"messages": HELLO, "stop": ["\ud800"], "temperature": -1}),
    (CHAT, {"messages": HELLO, "model": "no-such-model"}),
    (CHAT, {"messages": HELLO, "model": "no-such-model:high"}),
    (CHAT, {"messages": HELLO, "model": "\ud800"}),
    (CHAT, {"messages": HELLO, "model": 3}),
    (BATCH, {"messages": HELLO}),
    (BATCH, {"messages": [HELLO, []]}),
    (MESSAGES, {"messages": HELLO}),
    (MESSAGES, {"messages": HELLO, "max_tokens": 4, "model": "no-such-model"}),
    (MESSAGES, {"messages": HELLO, "max_tokens": 4, "model": "\ud800"}),
    (MESSAGES, {"messages": [{"role": "user", "content": "word " * 3000}], "max_tokens": 4}),
    (COUNT, {"messages": HELLO, "model": "no-such-model"}),
    (COMPLETIONS, {"prompt": "x", "max_tokens": -1}),
    (RESPONSES, {"input": [{"role": "nobody"}]}),
    ("/tokenize", {"model": "no-such-model", "prompt": "x"}),
    ("/v1/nothing-here", {}),
    ("/v1/models", {}),
]


async def test_a_burst_of_long_prompts_is_answered_however_tokens_are_drawn(
    gateway: httpx.AsyncClient, launched: Launched
) -> None:
    bodies = [
        {
            "model": name(launched),
            "messages": [{"role": "user", "content": f"{at} " + "boats come and go " * (10 + 15 * (at % 5))}],
            "max_tokens": 4,
            **how,
            "latent": {"effort": effort},
        }
        for at, (how, effort) in enumerate(itertools.product(HOW, ("none", "low", "medium")))
    ]
    answers = await asyncio.gather(*(gateway.post(CHAT, json=body) for body in bodies))
    assert [answer.text for answer in answers if answer.status_code != 200] == []


DEEP = {"type": "string", "pattern": "(" * 1_500 + "a" + ")" * 1_500}
CHAINED = {
    "$ref": "#/$defs/n0",
    "$defs": {f"n{at}": {"type": "array", "items": {"$ref": f"#/$defs/n{at + 1}"}} for at in range(1_500)},
}
LONG = {"enum": ["a" * 100_000, "b"]}
COUNTED = {"type": "object", "properties": {f"p{at}": {} for at in range(400)}, "minProperties": 200}


@pytest.mark.parametrize("effort", ["none", "medium"])
@pytest.mark.parametrize("schema", [DEEP, CHAINED, LONG, COUNTED], ids=["deep", "chained", "long", "counted"])
async def test_a_grammar_that_would_end_the_server_is_refused_by_name(
    gateway: httpx.AsyncClient, launched: Launched, schema: dict[str, Any], effort: str
) -> None:
    asked = {"model": name(launched), "messages": HELLO, **LENGTH, "latent": {"effort": effort}}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = await gateway.post(CHAT, json=asked | {"response_format": named})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "structured_outputs"
    assert "are the most" in answer.text or "deep" in answer.text


async def test_long_choices_are_answered_as_the_model_would(
    gateway: httpx.AsyncClient, launched: Launched
) -> None:
    long = ["a" + " b" * 3_000, "yes"]
    body = {"model": name(launched), "messages": HELLO, **LENGTH, "structured_outputs": {"choice": long}}
    answer = await gateway.post(CHAT, json=body | {"latent": {"effort": "medium"}})
    assert (answer.status_code, answer.headers["x-latent-reason"]) == (200, "long-choices"), answer.text


async def test_more_answers_than_a_server_can_hold_are_refused(
    gateway: httpx.AsyncClient, launched: Launched
) -> None:
    for path in (CHAT, COMPLETIONS):
        body = {"model": name(launched), **ASKED[path], "temperature": 1, "n": 129}
        answer = await gateway.post(path, json=body)
        assert answer.status_code == 400, answer.text
        assert "128" in answer.text


async def test_parameters_of_vllms_own_cannot_end_the_engine(
    gateway: httpx.AsyncClient, launched: Launched
) -> None:
    generate = "/inference/v1/generate"
    unchecked = {"token_ids": [1] * 507, "sampling_params": {"min_tokens": 10, "skip_clone": True}}
    assert (await gateway.post(generate, json=unchecked)).status_code == 400
    cached = {"max_tokens": 1, "prompt_logprobs": 1, "skip_reading_prefix_cache": False}
    for _ in range(3):
        answer = await gateway.post(generate, json={"token_ids": [504] * 70, "sampling_params": cached})
        assert answer.status_code == 200, answer.text
        listed = answer.json()["prompt_logprobs"][1:]
        assert all(0 <= int(token) < 100_000 for one in listed for token in one)


async def test_lists_of_log_probabilities_are_each_requests_own(
    gateway: httpx.AsyncClient, launched: Launched
) -> None:
    plain = {"model": name(launched), **LENGTH, "logprobs": True, "latent": {"effort": "none"}}
    asked = [
        {**plain, "messages": HELLO, "top_logprobs": 3},
        {**plain, "messages": [*HELLO, *HELLO], "logprob_token_ids": [504, 505, 506, 507, 508]},
    ]

    async def listed(body: dict[str, Any]) -> list[list[str]]:
        answer = (await gateway.post(CHAT, json=body)).json()
        tokens = answer["choices"][0]["logprobs"]["content"]
        return [[one["token"] for one in token["top_logprobs"]] for token in tokens]

    alone = [await listed(body) for body in asked]
    assert [len(lists[0]) for lists in alone] == [3, 6]
    together = await asyncio.gather(*map(listed, asked * 4))
    assert list(together) == alone * 4


async def test_clients_cannot_go_before_others(
    gateway: httpx.AsyncClient, launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, seen = launched.engine.llm.engine_core, list[int]()
    add_request = core.add_request_async

    async def noted(request: Any) -> None:
        seen.append(request.priority)
        await add_request(request)

    monkeypatch.setattr(core, "add_request_async", noted)
    body = {"model": name(launched), "messages": HELLO, **LENGTH, "latent": {"effort": "none"}}
    for priority in (-5, 7, 2**40):
        assert (await gateway.post(CHAT, json=body | {"priority": priority})).status_code == 200
    header = {"x-vllm-priority": str(2**64)}
    assert (await gateway.post(CHAT, json=body, headers=header)).status_code == 200
    assert seen == [0, 7, BEHIND - 1, BEHIND - 1]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_vllm_refuses_is_refused_in_its_words(
    launched: Launched, http: httpx.AsyncClient, gateway: httpx.AsyncClient, stream: bool
) -> None:
    headers, wrong = {"content-type": "application/json"}, []
    for path, body in BAD:
        if isinstance(body, dict):
            model = {} if path in ("/v1/nothing-here", "/v1/models") else {"model": name(launched)}
            body = json.dumps(({"stream": True} if stream else {}) | model | body).encode()
        expected = await http.post(path, content=body, headers=headers)
        answer = await gateway.post(path, content=body, headers=headers)
        if (answer.status_code, answer.content) != (expected.status_code, expected.content):
            wrong.append((path, body, expected.text, answer.text))
        elif not 400 <= answer.status_code < 500:
            wrong.append((path, body, answer.text))
    assert not wrong


async def test_other_media_types_are_refused_in_vllms_words(
    http: httpx.AsyncClient, gateway: httpx.AsyncClient
) -> None:
    for path in (CHAT, MESSAGES, "/tokenize"):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"):
            headers = {"content-type": kind}
            expected = await http.post(path, content=b'{"model":"x:high"}', headers=headers)
            answer = await gateway.post(path, content=b'{"model":"x:high"}', headers=headers)
            assert (answer.status_code, answer.content) == (400, expected.content)


async def test_unknown_paths_and_methods_are_vllms(
    http: httpx.AsyncClient, gateway: httpx.AsyncClient
) -> None:
    for method, path in (
        ("GET", "/nothing"),
        ("DELETE", "/v1/models"),
        ("HEAD", "/v1/models"),
        ("GET", CHAT),
    ):
        expected, answer = await http.request(method, path), await gateway.request(method, path)
        assert said(answer) == said(expected), (method, path)
        assert answer.headers.get("allow") == expected.headers.get("allow")


async def test_conversations_of_a_batch_are_steered_one_by_one(
    launched: Launched, gateway: httpx.AsyncClient
) -> None:
    asked = ["Name three rivers.", "Name three rivers, please.", "Write a haiku about rain."]
    body = {"messages": [[{"role": "user", "content": each}] for each in asked], **LENGTH}
    answer = await gateway.post(BATCH, json=body | {"model": f"{name(launched)}:medium"})
    assert answer.status_code == 200, answer.text
    told = [choice["latent"] for choice in answer.json()["choices"]]
    assert len({each["trace"] for each in told}) == len(asked)
    assert {each["effort"] for each in told} == {"medium"}
    for question, each in zip(asked, told, strict=True):
        trace = (await gateway.get(f"/v1/latent/traces/{each['trace']}")).json()
        assert trace["mode"] == each["mode"], question
    assert answer.json()["usage"]["latent"]["generated_tokens"] > 0


async def remembered(gateway: httpx.AsyncClient, inference_id: str) -> dict[str, Any]:
    """Call an answer wrong, and return what is remembered of it."""
    said = {"inference_id": inference_id, "metric_name": "rating", "value": False}
    answer = await gateway.post("/v1/feedback", json=said)
    assert answer.status_code == 200, answer.text
    trace = (await gateway.get(f"/v1/latent/traces/{inference_id[-36:]}")).json()
    found: dict[str, Any] = (await gateway.get(f"/v1/memory/episodes/{trace['episode_id']}")).json()
    return found


@pytest.mark.parametrize("stream", [False, True])
async def test_the_id_of_every_answer_leads_feedback_to_what_the_client_got(
    launched: Launched, gateway: httpx.AsyncClient, stream: bool
) -> None:
    client = AsyncOpenAI(base_url="http://localhost/v1", api_key="s3cret", http_client=gateway)
    model, kind = f"{name(launched)}:low", "streamed" if stream else "whole"
    question = f"Name three rivers, {kind}."
    named = {"X-Request-Id": "of-a-proxy"}
    asked: Any = {"model": model, "messages": [{"role": "user", "content": question}], **LENGTH}
    if stream:
        chunks = [one async for one in await client.chat.completions.create(**asked, stream=True)]
        (chat_id,) = {one.id for one in chunks}
        text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    else:
        completion = await client.chat.completions.create(**asked, extra_headers=named)
        chat_id, text = completion.id, completion.choices[0].message.content or ""
    episode = await remembered(gateway, chat_id)
    assert (episode["answer_text"], len(episode["answer_token_ids"])) == (text, LENGTH["max_tokens"])
    assert question in episode["prompt_text"]

    said: Any = {"model": model, "input": f"Name a lake, {kind}.", "max_output_tokens": 4, "temperature": 0}
    if stream:
        events = [event async for event in await client.responses.create(**said, stream=True)]
        response: Any = events[-1].response  # type: ignore[union-attr]
    else:
        response = await client.responses.create(**said)
    episode = await remembered(gateway, response.id)
    assert episode["answer_text"] == response.output_text
    assert f"Name a lake, {kind}." in episode["prompt_text"]

    message = await gateway.post(MESSAGES, json=asked | {"stream": stream}, headers=named)
    trace_id = message.headers["x-latent-trace"]
    assert f'"id":"chatcmpl-{trace_id}"' in message.text.replace('": "', '":"')
    episode = await remembered(gateway, f"chatcmpl-{trace_id}")
    assert len(episode["answer_token_ids"]) == LENGTH["max_tokens"]


@pytest.mark.parametrize("effort", ["low", "medium"])
async def test_of_choices_a_demonstration_is_one_and_a_rating_is_of_the_one_that_was_given(
    launched: Launched, gateway: httpx.AsyncClient, effort: str
) -> None:
    content = f"Which is shorter, the Rhine or the Seine? ({effort})"
    asked = {"model": f"{name(launched)}:{effort}", "messages": [{"role": "user", "content": content}]}
    answer = await gateway.post(
        CHAT, json=asked | LENGTH | {"structured_outputs": {"choice": ["Rhine", "Seine"]}}
    )
    chosen = answer.json()["choices"][0]["message"]["content"]
    episode = await remembered(gateway, answer.json()["id"])
    assert (episode["answer_text"], episode["choices"]) == (chosen, ["Rhine", "Seine"])
    assert episode["signals"]["feedback"] == 0.0
    said = {"inference_id": answer.json()["id"], "metric_name": "demonstration", "value": "Elbe"}
    refused = await gateway.post("/v1/feedback", json=said)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "value")
    other = next(choice for choice in episode["choices"] if choice != chosen)
    assert (await gateway.post("/v1/feedback", json=said | {"value": other})).status_code == 200
    shown = (await gateway.get(f"/v1/memory/episodes/{episode['id']}")).json()
    assert (shown["answer_text"], shown["reward"]) == (other, 1.0)
    assert shown["choice_log_probabilities"] == episode["choice_log_probabilities"]
    assert bool(shown["choice_log_probabilities"]) == (effort == "medium")


async def test_of_a_batch_each_conversation_has_a_trace_for_feedback(
    launched: Launched, gateway: httpx.AsyncClient
) -> None:
    asked = ["Name an old town.", "Name a new town."]
    body = {"messages": [[{"role": "user", "content": each}] for each in asked], **LENGTH}
    answer = (await gateway.post(BATCH, json=body | {"model": f"{name(launched)}:low"})).json()
    for question, choice in zip(asked, answer["choices"], strict=True):
        episode = await remembered(gateway, choice["latent"]["trace"])
        assert question in episode["prompt_text"]
        assert episode["answer_text"] == choice["message"]["content"]


async def test_a_client_that_names_its_request_keeps_the_name(
    launched: Launched, gateway: httpx.AsyncClient
) -> None:
    body = {"model": name(launched), "messages": HELLO, "request_id": "mine", **LENGTH}
    assert (await gateway.post(CHAT, json=body)).json()["id"] == "chatcmpl-mine"
    several = await gateway.post(CHAT, json=body | {"n": 2, "temperature": 1})
    said = {"inference_id": several.headers["x-latent-trace"], "metric_name": "rating", "value": False}
    assert (await gateway.post("/v1/feedback", json=said)).status_code == 404
    shown = said | {"metric_name": "demonstration", "value": "Rhine, Elbe, Oder"}
    assert (await gateway.post("/v1/feedback", json=shown)).status_code == 200


async def test_documentation_page_has_its_script_and_style(gateway: httpx.AsyncClient) -> None:
    page = (await gateway.get("/docs")).text
    loaded = re.findall(r'(?:src|href)="(static/[^"]+)"', page)
    assert len(loaded) == 2
    for asset in loaded:
        assert len((await gateway.get(f"/{asset}")).content) > 100_000
    schema = (await gateway.get("/openapi.json")).json()
    assert {CHAT, "/v1/latent/traces/{trace_id}"} <= schema["paths"].keys()
    assert (await gateway.get("/redoc")).status_code == 404


async def tenant(gateway: httpx.AsyncClient, whose: str) -> dict[str, str]:
    """Return the headers of a new tenant's client."""
    body = {"name": whose, "tenant": whose, "scopes": ["infer", "memory:read", "admin"]}
    key = (await gateway.post("/v1/keys", json=body)).json()
    return {"authorization": f"Bearer {key['secret']}"}


def routes(app: FastAPI) -> set[str]:
    """Return the routes of an app, by method and path."""
    found = set()
    for route in app.routes:
        methods = getattr(route, "methods", None) or {"WEBSOCKET"}
        found |= {f"{method} {getattr(route, 'path', '')}" for method in methods - {"HEAD"}}
    return found


async def test_every_route_of_vllms_that_asks_the_model_stands_in_the_table_of_scopes(
    launched: Launched,
) -> None:
    listed = {route for names in TABLE.values() for route in names}
    left = routes(launched.app) - listed
    assert not {f"POST {path}" for path in naming(launched.app)} & left
    for route in left:  # operators alone may ask them
        method, _, path = route.partition(" ")
        assert is_public(path) or rule_of(method, path) == Rule("admin", everybody=False)
    parted = {route for route in TABLE[Rule("infer")] if not route.endswith(("/embeddings", "/feedback"))}
    assert parted == {f"POST {path}" for path in ASKED}, "each is asked by two tenants below"


async def test_two_tenants_share_no_prefix_cache_on_any_route(
    gateway: httpx.AsyncClient, launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = launched.engine.llm.engine_core
    salts, add_request = list[str | None](), core.add_request_async

    async def noted(request: Any) -> None:
        salts.append(request.cache_salt)
        await add_request(request)

    monkeypatch.setattr(core, "add_request_async", noted)
    headers = {whose: await tenant(gateway, whose) for whose in ("acme", "globex")}
    bases: dict[str, set[str | None]] = {}
    for whose, own in headers.items():
        salts.clear()
        asked = [(path, {"model": name(launched), **body}) for path, body in ASKED.items()]
        asked += [(path, body | {"cache_salt": "mine"}) for path, body in asked if path == CHAT]
        asked += [(path, body | {"request_id": "latent.own"}) for path, body in asked if path == RESPONSES]
        asked += [
            (CHAT, {"model": name(launched), "messages": HELLO, **LENGTH, "latent": {"effort": effort}})
            for effort in ("none", "medium", "high")
        ]
        asked += [("/v1/embeddings", {"model": name(launched), "input": "hello"})]
        asked += [("/v1/memory/search", {"text": "hello"})]
        for path, body in asked:
            before = len(salts)
            answer = await gateway.post(path, json=body, headers=own)
            assert answer.status_code not in (401, 403, 404), answer.text
            if ("usage" in answer.text and not path.endswith("derender")) or path == "/v1/embeddings":
                assert len(salts) > before, path
        assert None not in salts
        bases[whose] = {salt.partition(".")[0] for salt in salts if salt}
        assert len(bases[whose]) == 1
        assert any("." in salt for salt in salts if salt), "a salt of the client's own parts further"
    assert not bases["acme"] & bases["globex"]
    salts.clear()
    await gateway.post(CHAT, json={"model": name(launched), "messages": HELLO, **LENGTH})
    assert set(salts) == {None}


async def test_what_one_tenant_has_cached_another_computes_anew(
    gateway: httpx.AsyncClient, launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = list[int]()
    generate = launched.engine.llm.generate

    async def noted(*args: Any, **more: Any) -> AsyncIterator[Any]:
        async for output in generate(*args, **more):
            if output.finished:
                cached.append(output.num_cached_tokens)
            yield output

    monkeypatch.setattr(launched.engine.llm, "generate", noted)
    words = " ".join(f"number {number}" for number in range(60))
    body = {
        "model": name(launched),
        "messages": [{"role": "user", "content": f"Of these, which is a river? {words}"}],
        **LENGTH,
        "latent": {"effort": "none"},
    }
    first, second = await tenant(gateway, "acme"), await tenant(gateway, "globex")
    for own, computed in ((first, True), (first, False), (second, True), (second, False)):
        cached.clear()
        assert (await gateway.post(CHAT, json=body, headers=own)).status_code == 200
        assert (cached == [0]) == computed


async def test_responses_of_a_tenant_are_not_stored(
    gateway: httpx.AsyncClient, launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launched.app.state.openai_serving_responses, "enable_store", True)
    own = await tenant(gateway, "acme")
    body = {"model": name(launched), **ASKED[RESPONSES], "store": True}
    kept = (await gateway.post(RESPONSES, json=body)).json()
    assert (await gateway.get(f"{RESPONSES}/{kept['id']}")).status_code == 200
    answer = (await gateway.post(RESPONSES, json=body, headers=own)).json()
    assert (await gateway.get(f"{RESPONSES}/{answer['id']}")).status_code == 404
    later = await gateway.post(RESPONSES, json=body | {"previous_response_id": answer["id"]}, headers=own)
    assert (later.status_code, later.json()["error"]["param"]) == (400, "previous_response_id")
    assert (await gateway.get(f"{RESPONSES}/{answer['id']}", headers=own)).status_code == 403
