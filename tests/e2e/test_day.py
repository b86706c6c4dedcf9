"""Refine, remember, recall (issue: held by tests, 4)."""

import shutil

import pytest

from memory.episode import LEAST_GAIN
from tests.e2e.conftest import CHOICES, HEADLINES, TOPIC, UNRELATED
from tests.e2e.processes import Gateway
from tests.tiny_model import HIDDEN


@pytest.mark.parametrize(
    "options",
    [
        {"effort": "none"},
        {"effort": "low"},
        {"effort": "medium"},
        {"effort": "high", "budget_tokens": 200},
        {"effort": "high", "budget_tokens": 200, "search": "gradient"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_answer_has_log_probabilities_where_nothing_can_be_compiled(
    served: Gateway, options: dict[str, object]
) -> None:
    assert not any(shutil.which(name, path=served.env["PATH"]) for name in ("g++", "gcc", "clang++", "c++"))
    answer = served.openai.chat.completions.create(
        model=served.model,
        messages=[{"role": "user", "content": "What is 17 plus 25?"}],
        max_tokens=6,
        logprobs=True,
        top_logprobs=5,
        extra_body={"latent": {**options, "store": False}},
    )
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content
    assert tokens
    assert all(len(token.top_logprobs) == 5 for token in tokens)


def test_similar_request_recalls_what_refining_remembered(remembering: Gateway) -> None:
    _, headers = remembering.ask(TOPIC.format(HEADLINES[-1]), effort="low", prior="none")
    assert headers["x-latent-mode"] == "recall"
    used = headers["x-latent-episodes"].split(",")
    trace = remembering.trace(headers)
    assert [entry["id"] for entry in trace["episodes"]] == used
    assert all(entry["similarity"] >= 0.6 for entry in trace["episodes"])
    assert trace["latent"]["shape"] == [16, HIDDEN]


def test_unrelated_request_does_not(remembering: Gateway) -> None:
    for question in UNRELATED:
        _, headers = remembering.ask(question, effort="low", prior="none")
        assert headers["x-latent-mode"] == "plain", question
        assert headers["x-latent-reason"] == "nothing-recalled"
        assert headers["x-latent-episodes"] == ""


def test_refining_keeps_the_best_and_says_what_it_cost(remembering: Gateway) -> None:
    _, headers = remembering.ask(TOPIC.format(HEADLINES[-2]), choices=CHOICES, effort="high", steps=2, seed=3)
    trace = remembering.settled_trace(headers)
    assert trace["steps"][-1]["best"] >= trace["reward_before"]
    assert trace["usage"]["generated_tokens"] > 0
    if trace["remembered"] == "stored":
        episode = remembering.get(f"/v1/memory/episodes/{trace['episode_id']}")
        assert episode["latent_earned"] == (trace["steps"][-1]["best"] >= trace["reward_before"] + LEAST_GAIN)
    else:
        assert trace["why_not_remembered"]


def test_gradient_runs_through_the_gradient_worker(remembering: Gateway) -> None:
    _, headers = remembering.ask(
        TOPIC.format(HEADLINES[-3]), max_tokens=6, effort="medium", search="gradient", steps=1, seed=5
    )
    trace = remembering.trace(headers)
    assert trace["options"]["search"] == "gradient"
    assert "engine-error" not in trace["reason"]
    usage = trace["usage"]
    # Only a gradient is charged beyond what was read and generated.
    assert usage["forward_tokens"] > usage["prompt_tokens"] + usage["generated_tokens"]


def test_token_budget_is_kept(remembering: Gateway) -> None:
    _, headers = remembering.ask(
        TOPIC.format(HEADLINES[-4]), max_tokens=8, effort="high", budget_tokens=40, store=False
    )
    trace = remembering.trace(headers)
    assert 0 < trace["usage"]["generated_tokens"] <= 40
    assert trace["remembered"] == "no"


def test_statistics_count_what_happened(remembering: Gateway) -> None:
    stats = remembering.get("/v1/memory/stats")
    space = stats["spaces"][stats["space"]]
    assert space["episodes"] >= 8
    assert sum(space["reward_histogram"]) == space["episodes"]
    assert 0.5 <= space["reward_mean"] <= 1
    assert 0 < stats["hit_rate"] <= 1


def test_trace_can_be_replayed(remembering: Gateway) -> None:
    _, headers = remembering.ask(TOPIC.format(HEADLINES[-1]), effort="low", prior="none")
    trace = remembering.get(f"/v1/latent/traces/{headers['x-latent-trace']}?include=latent")
    rows = trace["latent"]["values"]
    assert len(rows) == 16
    assert all(len(row) == HIDDEN for row in rows)
