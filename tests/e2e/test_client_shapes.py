"""Requests as well-known clients write them: their bodies as recorded, 2026-11-28.

langchain-openai 1.7.4, litellm 1.110.2, Vercel's AI SDK 6.0.326, @ai-sdk/openai 3.0.141; Open WebUI's as it
is documented.
"""

import json
from typing import Any

import pytest

from tests.e2e.processes import HTTP, Gateway


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"reasoning_effort": "medium"}, id="litellm"),
        pytest.param({"max_completion_tokens": 16, "reasoning_effort": "low"}, id="langchain"),
        pytest.param(
            {
                "stream": True,
                "stream_options": {"include_usage": True},
                "messages": [
                    {"role": "system", "content": "You are helpful."},
                    {"role": "user", "content": [{"type": "text", "text": "Name a colour."}]},
                ],
                "metadata": {"task": "title_generation"},
                "chat_id": "c1",
                "session_id": "s1",
                "background_tasks": {"title_generation": True},
            },
            id="open-webui",
        ),
    ],
)
def test_fields_of_chat_clients_are_taken(served: Gateway, fields: dict[str, Any]) -> None:
    body = {
        "model": served.model,
        "messages": [{"role": "user", "content": "What is 2 + 2?"}],
        "max_tokens": 16,
    }
    answer = HTTP.post(f"{served.url}/v1/chat/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    if fields.get("stream"):
        last = answer.text.strip().split("\n\n")
        assert last[-1] == "data: [DONE]"
        assert json.loads(last[-2].removeprefix("data: "))["usage"]["completion_tokens"] > 0


def test_responses_of_the_ai_sdk_are_answered(served: Gateway) -> None:
    body = {
        "model": served.model,
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Name a colour."}]}],
        "max_output_tokens": 16,
    }
    answer = HTTP.post(f"{served.url}/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["output"]
