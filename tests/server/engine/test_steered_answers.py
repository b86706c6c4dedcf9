"""The whole of steering on real vLLM: what clients get, and what is remembered of it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from config.settings import Settings
from server.engine.injection import install
from server.engine.launch import Launched
from server.gateway import Gateway
from server.wiring import assemble
from tests.server.engine.test_injection import (
    CALL,
    CHAT,
    NAMED,
    TOSS,
    answer,
    body,
    called,
    spelt,
    text_of,
    without_spaces,
)

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]


@pytest_asyncio.fixture(loop_scope="session")
async def gateway(launched: Launched, settings: Settings, tmp_path: Path) -> AsyncIterator[Gateway]:
    """Everything around the engine, with an empty memory that takes what it is given."""
    renderer = launched.app.state.online_renderer
    unhooked = renderer.preprocess_chat, launched.engine.llm.generate

    async def alive() -> bool:
        return True

    day = settings.model_copy(
        update={
            "data_dir": tmp_path,
            "rewards": "consistency=0.5,confidence=0.5",
            "remember_threshold": 0.0,
            "night_episodes": 0,
        }
    )
    async with assemble(
        day,
        CollectorRegistry(),
        engine=launched.engine,
        inner=launched.app,
        served=lambda: {settings.model},
        engine_answers=alive,
        checks=[],
        send_night=lambda night: None,
    ) as gateway:
        install(launched.app.state, launched.engine, gateway.steering.steer, gateway.steering.answered)
        yield gateway
        renderer.preprocess_chat, launched.engine.llm.generate = unhooked


@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_what_is_remembered_where_a_call_is_required_is_a_call(
    launched: Launched, http: httpx.AsyncClient, gateway: Gateway, choice: Any
) -> None:
    sent = body(launched, "Toss a coin.", max_tokens=96) | {"tools": [TOSS], "tool_choice": choice}
    sent |= spelt(launched, CALL, "What comes next: 2 + 2 = 4.")
    with called(effort="medium", deadline_s=600.0) as call:
        given = await answer(http, sent)
    assert call.outcome is not None
    assert call.outcome.reward_before is not None
    (made,) = given["choices"][0]["message"]["tool_calls"]
    assert made["function"]["name"] == "toss"
    assert await gateway.remember.drain()
    (episode,) = list(gateway.store.scroll())
    assert without_spaces(episode.answer_text) == without_spaces(CALL)
    assert launched.engine.decode(episode.answer_token_ids) == episode.answer_text


async def test_the_same_request_streamed_and_whole_gives_one_text(
    launched: Launched, http: httpx.AsyncClient, gateway: Gateway
) -> None:
    for question in ("Name a colour.", "What is 17 times 3?", "Name three rivers."):
        sent = body(launched, question)
        texts = []
        for stream in (False, True, False):
            with called(effort="medium", store=False, deadline_s=600.0):
                response = await http.post(CHAT, json=sent | {"stream": stream})
            texts.append(_streamed(response) if stream else text_of(response.json()))
        assert texts == texts[:1] * 3


def _streamed(response: httpx.Response) -> str:
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    deltas = (choice["delta"] for line in lines for choice in json.loads(line)["choices"])
    return "".join(delta.get("content") or "" for delta in deltas)
