"""Bad input is refused naming the field, and nothing is stored for it (issue: held by tests, 7)."""

import base64
import io
from typing import Any

import httpx
import pytest
import torch

from tests.e2e.processes import HTTP, Gateway
from tests.tiny_model import HIDDEN

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def embeds() -> str:
    buffer = io.BytesIO()
    torch.save(torch.zeros(4, HIDDEN), buffer)
    return base64.b64encode(buffer.getvalue()).decode()


CASES = [
    (CHAT, {"latent": {"effort": "extreme"}}, "latent.effort"),
    (CHAT, {"reasoning_effort": "extreme"}, "reasoning_effort"),
    (CHAT, {"latent": {"k": 0}}, "latent.k"),
    (CHAT, {"latent": {"k": "many"}}, "latent.k"),
    (CHAT, {"latent": {"floor": 2}}, "latent.floor"),
    (CHAT, {"latent": {"steps": -1}}, "latent.steps"),
    (CHAT, {"latent": {"budget_tokens": 0}}, "latent.budget_tokens"),
    (CHAT, {"latent": {"deadline_s": -5}}, "latent.deadline_s"),
    (CHAT, {"latent": {"search": "hope"}}, "latent.search"),
    (CHAT, {"latent": {"nonsense": 1}}, "latent.nonsense"),
    (CHAT, {"latent": "high"}, "latent"),
    (CHAT, {"latent": {"prior": "v999", "effort": "low"}}, "latent.prior"),
    (CHAT, {"messages": [{"role": "user", "content": "word " * 3000}]}, None),
    (CHAT, {"messages": "Hello"}, "messages"),
    (CHAT, {"model": "no-such-model"}, "model"),
    ("/v1/completions", {"prompt_embeds": embeds(), "messages": None}, "prompt_embeds"),
    ("/v1/completions", {"prompt": "x", "messages": None, "latent": {"effort": "x"}}, "latent.effort"),
    ("/v1/responses", {"input": "x", "messages": None, "reasoning": {"effort": "x"}}, "reasoning"),
]


@pytest.mark.parametrize(("path", "change", "field"), CASES)
@pytest.mark.parametrize("stream", [False, True])
def test_refused_naming_the_field(
    served: Gateway, path: str, change: dict, field: str | None, stream: bool
) -> None:
    before = served.get("/v1/memory/stats")
    body = {"model": served.model, "messages": HELLO, "max_tokens": 4, "stream": stream} | change
    answer = HTTP.post(served.url + path, json={k: v for k, v in body.items() if v is not None})
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert error["message"]
    if field:
        assert field in f"{error['param']} {error['message']}"
    assert answer.headers["x-latent-mode"] == "plain"
    after = served.get("/v1/memory/stats")
    assert after["spaces"] == before["spaces"]


def test_prompt_with_embedded_part_is_refused(served: Gateway) -> None:
    part = {"type": "prompt_embeds", "prompt_embeds": embeds()}
    body = {"model": served.model, "messages": [{"role": "user", "content": [part]}], "max_tokens": 4}
    answer = HTTP.post(served.url + CHAT, json=body)
    assert answer.status_code == 400, answer.text
    assert "prompt_embeds" in answer.text


def test_near_the_end_of_the_context_whoever_names_an_effort_is_answered_as_by_bare_vllm(
    served: Gateway,
) -> None:
    usage = served.openai.chat.completions.create(model=served.model, messages=HELLO, max_tokens=1).usage
    words = " word" * (1024 - 8 - usage.prompt_tokens)
    nearly_full = [{"role": "user", "content": HELLO[0]["content"] + words}]

    def post(**effort: Any) -> httpx.Response:
        body = {"model": served.model, "messages": nearly_full, "max_tokens": 8, "temperature": 0}
        return HTTP.post(served.url + CHAT, json=body | effort)

    bare = post(latent={"effort": "none"})
    named: list[dict[str, Any]] = [
        {},
        {"reasoning_effort": "low"},
        {"model": f"{served.model}:high"},
        {"latent": {"effort": "medium"}},
    ]
    for effort in named:
        answer = post(**effort)
        assert answer.status_code == 200, answer.text
        assert (answer.headers["x-latent-mode"], answer.headers["x-latent-reason"]) == ("plain", "no-room")
        for part in ("choices", "usage"):
            assert answer.json()[part] == bare.json()[part]


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b'"text"', b"\xff\xfe"])
def test_malformed_json_is_refused(served: Gateway, body: bytes) -> None:
    answer = HTTP.post(
        served.url + CHAT, content=body, headers={"content-type": "application/json"}, timeout=30
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/latent/traces/not-a-uuid", 404),
        ("GET", "/v1/latent/traces/00000000-0000-4000-8000-000000000000", 404),
        ("POST", "/v1/priors/v999/activate", 404),
        ("GET", "/v1/priors/v999", 404),
        ("GET", "/v1/priors/..%2F..", 404),
        ("GET", "/v1/consolidations/00000000-0000-4000-8000-000000000000", 404),
        ("GET", "/v1/nothing-here", 404),
    ],
)
def test_unknown_things_are_404(served: Gateway, method: str, path: str, status: int) -> None:
    answer = HTTP.request(method, served.url + path, timeout=30)
    assert answer.status_code == status, answer.text
