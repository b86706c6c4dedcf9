"""Unsteered requests are bare vLLM (issue: held by tests, 1)."""

import json
import sys
from pathlib import Path

import openai
import pytest

from server.engine.launch import PROGRAMS
from tests.e2e.conftest import TOPIC, UNRELATED
from tests.e2e.processes import HTTP, READY_S, Gateway, environment, start

BARE = Path(__file__).with_name("bare_vllm.py")

# A headline that no other test has asked about: recall would find it, however high the floor.
QUESTIONS = [TOPIC.format("Lighthouse keepers retire after forty years at sea"), *UNRELATED]


def messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def tokens(client: openai.OpenAI, model: str, question: str, *, stream: bool, **extra: object):
    """Return the answer's tokens, as text pieces with their log-probabilities' ranks left out."""
    options = {
        "model": model,
        "messages": messages(question),
        "max_tokens": 24,
        "temperature": 0,
        "logprobs": True,
        "extra_body": extra or None,
    }
    if not stream:
        choice = client.chat.completions.create(**options).choices[0]
        return [entry.token for entry in choice.logprobs.content]
    pieces = []
    for chunk in client.chat.completions.create(stream=True, **options):
        if chunk.choices and chunk.choices[0].logprobs:
            pieces += [entry.token for entry in chunk.choices[0].logprobs.content]
    return pieces


@pytest.fixture(scope="module")
def bare(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What vLLM alone answers, by question."""
    folder = tmp_path_factory.mktemp("bare")
    env = environment(folder, 0) | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "PATH": str(PROGRAMS),
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    answers = folder / "answers.json"
    process = start([sys.executable, str(BARE), tiny_model, str(answers), *QUESTIONS], env, folder / "log")
    try:
        assert process.popen.wait(READY_S) == 0, process.tail()
    finally:
        process.end()
    return json.loads(answers.read_text())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("effort", ["none", "low"])
def test_nothing_to_recall_gives_the_tokens_of_bare_vllm(
    served: Gateway, bare: dict[str, list[str]], effort: str, stream: bool
) -> None:
    for question, expected in bare.items():
        pin = {"latent": {"effort": effort, "prior": "none", "floor": 1.0}}
        assert tokens(served.openai, served.model, question, stream=stream, **pin) == expected


@pytest.mark.parametrize(
    ("effort", "reasons"),
    [("none", {"effort-none"}), ("low", {"memory-empty", "nothing-recalled"})],
)
def test_header_says_why_nothing_was_injected(served: Gateway, effort: str, reasons: set[str]) -> None:
    _, headers = served.ask(UNRELATED[0], effort=effort)
    assert headers["x-latent-mode"] == "plain"
    assert headers["x-latent-reason"] in reasons
    assert headers["x-latent-effort"] == effort
    if effort == "none":
        assert headers["x-latent-trace"] == "none"
    else:
        assert served.trace(headers)["reason"] == headers["x-latent-reason"]


def test_completions_and_models_stay_vllms(served: Gateway) -> None:
    raw = served.openai.completions.with_raw_response.create(
        model=served.model, prompt="The sea is", max_tokens=4, temperature=0
    )
    assert raw.headers["x-latent-mode"] == "plain"
    assert raw.headers["x-latent-reason"] == "completions-not-steered"
    assert raw.parse().usage.completion_tokens == 4
    metrics = HTTP.get(f"{served.url}/metrics").text
    assert "vllm:num_requests_running" in metrics
    assert "latentevolve_" in metrics
