"""One question: what is sent, what is shown, what goes where."""

import io
import json
from collections.abc import Callable

import pytest

from tests.cli.conftest import Ran
from tests.cli.fake_gateway import EPISODE, MODEL, FakeGateway

Run = Callable[..., Ran]


def test_stdout_holds_the_answer_alone(run: Run, gateway: FakeGateway) -> None:
    ran = run("ask", "Which topic?")
    assert ran.code == 0
    assert ran.out == "Business\n"


def test_stderr_tells_what_steering_did(run: Run, gateway: FakeGateway) -> None:
    err = run("ask", "Which topic?", "--effort", "medium").err
    assert "mode      recall (recalled)" in err
    assert "effort    medium, prior v1" in err
    assert f"recalled  {EPISODE}  similarity 0.912" in err
    assert "reward    0.4000 → 0.7000" in err
    assert "memory    stored" in err
    assert "steering  recall 0.010 s, refine 1.250 s" in err
    assert "40 prompt, 3 answer; steering generated 24" in err


def test_options_reach_the_gateway(run: Run, gateway: FakeGateway) -> None:
    run("ask", "Hi", "--effort", "high", "--max-tokens", "7", "--system", "Be brief.", "--temperature", "0")
    body = gateway.asked[0]
    assert body["model"] == MODEL
    assert body["latent"] == {"effort": "high"}
    assert body["max_tokens"] == 7
    assert body["temperature"] == 0
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]


def test_without_an_effort_the_server_decides(run: Run, gateway: FakeGateway) -> None:
    run("ask", "Hi")
    assert "latent" not in gateway.asked[0]


def test_question_comes_from_stdin(run: Run, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from the pipe\n"))
    run("ask")
    assert gateway.asked[0]["messages"][0]["content"] == "from the pipe"


def test_empty_stdin_is_wrong_usage(run: Run, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert run("ask").code == 2


def test_json_holds_answer_headers_and_trace(run: Run, gateway: FakeGateway) -> None:
    document = json.loads(run("ask", "Hi", "--json").out)
    assert document["answer"] == "Business"
    assert document["headers"]["mode"] == "recall"
    assert document["trace"]["remembered"] == "stored"
    assert document["completion_tokens"] == 3


def test_unknown_effort_is_wrong_usage_and_lists_the_known(run: Run, gateway: FakeGateway) -> None:
    ran = run("ask", "Hi", "--effort", "heroic")
    assert ran.code == 2
    assert "'none', 'low', 'medium', 'high'" in ran.err
    assert gateway.asked == []


def test_refused_request_shows_the_gateways_words(run: Run, gateway: FakeGateway) -> None:
    gateway.refusal = "messages: the prompt is too long"
    ran = run("ask", "Hi")
    assert ran.code == 1
    assert "Error: messages: the prompt is too long" in ran.err


def test_unknown_model_lists_the_served(run: Run, gateway: FakeGateway) -> None:
    ran = run("ask", "Hi", "--model", "large")
    assert ran.code == 1
    assert f"served: {MODEL}" in ran.err


def test_escape_sequences_of_an_answer_do_not_reach_the_terminal(run: Run, gateway: FakeGateway) -> None:
    gateway.answers = {"Hi": "a\x1b]0;title\x07b\nc"}
    assert run("ask", "Hi").out == "a]0;titleb\nc\n"


def test_answer_that_breaks_off_is_a_failure(run: Run, gateway: FakeGateway) -> None:
    gateway.broken = True
    ran = run("ask", "Hi")
    assert ran.code == 1
    assert ran.out.startswith("Bus")
    assert "broke off" in ran.err
