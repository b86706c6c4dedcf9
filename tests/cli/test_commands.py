"""Exit codes, error texts and the three ways of writing, for the commands that talk to a gateway."""

import json
from collections.abc import Callable

import pytest

from tests.cli.conftest import Ran
from tests.cli.fake_gateway import EPISODE, EVIDENCE, FakeGateway, record
from tests.cli.ports import free_port
from tests.cli.terminal import on_terminal

Run = Callable[..., Ran]

COMMANDS = [
    ("ask", "Hello?"),
    ("night",),
    ("night", "list"),
    ("schedule",),
    ("priors", "list"),
    ("priors", "compare", "v1", "v2"),
    ("priors", "rollback"),
    ("priors", "show", "v1"),
    ("stats",),
    ("feedback", "chatcmpl-1", "--rating", "1"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_gateway_says_how_to_start_one(run: Run, command: tuple[str, ...]) -> None:
    ran = run(*command, "--url", f"http://127.0.0.1:{free_port()}")
    assert ran.code == 1
    assert ran.out == ""
    assert "no gateway answers at" in ran.err
    assert "latentevolve serve" in ran.err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_wrong_key_is_named(run: Run, gateway: FakeGateway, command: tuple[str, ...]) -> None:
    gateway.key = "right"
    ran = run(*command, "--api-key", "wrong")
    assert ran.code == 1
    assert "refused the key" in ran.err
    assert "LATENTEVOLVE_API_KEY" in ran.err


def test_key_from_the_environment_is_used(
    run: Run, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.key = "right"
    monkeypatch.setenv("LATENTEVOLVE_API_KEY", "right")
    assert run("stats").code == 0
    assert run("ask", "Hello?").code == 0


def test_a_setting_that_is_wrong_is_named_by_its_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in (("LATENTEVOLVE_PORT", "0"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            ran = run("stats")
        assert ran.code == 2
        assert variable in ran.err
        assert value in ran.err
        assert "LATENTEVOLVE_LATENTEVOLVE" not in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["nonsense"],
        ["ask", "--max-tokens", "0", "Hi"],
        ["priors", "show"],
        ["feedback", "chatcmpl-1", "--rating", "2"],
        ["serve", "--port", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_two(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert "Usage:" in ran.err


def test_setting_out_of_range_is_two_and_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTEVOLVE_RECALL_K", "0")
    ran = run("stats")
    assert ran.code == 2
    assert "recall_k" in ran.err
    assert "LATENTEVOLVE_RECALL_K" in ran.err


def test_server_that_is_no_gateway_is_recognised(run: Run, gateway: FakeGateway) -> None:
    ran = run("stats", "--url", f"{gateway.url}/docs#")
    assert ran.code == 1


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_pipe_gets_no_control_characters(
    run: Run, gateway: FakeGateway, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    gateway.nights = [
        record("running", phase="train", done=1, total=8),
        record("promoted", version="v1", evidence=EVIDENCE),
    ]
    ran = run(*command)
    assert ran.code == 0, ran.err
    assert not [c for c in ran.out + ran.err if ord(c) < 32 and c != "\n"]
    assert not [line for line in ran.out.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_json_is_one_document_and_all_else_is_on_stderr(
    run: Run, gateway: FakeGateway, command: tuple[str, ...]
) -> None:
    gateway.nights = [
        record("running", phase="train", done=1, total=8),
        record("promoted", version="v1", evidence=EVIDENCE),
    ]
    ran = run(*command, "--json")
    assert ran.code == 0
    assert isinstance(json.loads(ran.out), dict)
    assert ran.err


def test_terminal_gets_colours_and_bars(gateway: FakeGateway) -> None:
    gateway.nights = [
        record("running", phase="train", done=3, total=8, message="loss 1.2"),
        record("promoted", version="v3", evidence=EVIDENCE),
    ]
    seen = on_terminal(["night"], {"LATENTEVOLVE_GATEWAY_URL": gateway.url}).read()
    assert "\x1b[" in seen
    assert "━" in seen, "a bar"
    assert "3/8" in seen
    assert "promoted: v3 is active" in seen


# --- priors


def test_versions_are_listed_with_the_active_one_marked(run: Run, gateway: FakeGateway) -> None:
    lines = run("priors", "list").out.splitlines()
    assert lines[1].startswith("*  v1")
    assert lines[2].startswith("   v2")
    assert lines[1].endswith("serving  serves, on trial")
    assert lines[2].endswith("serves")


def test_empty_registry_says_how_to_fill_it(run: Run, gateway: FakeGateway) -> None:
    gateway.versions, gateway.active = [], None
    assert "latentevolve night" in run("priors", "list").out


def test_version_is_shown_with_the_evidence_of_its_night(run: Run, gateway: FakeGateway) -> None:
    out = run("priors", "show", "v1").out
    assert "settings.steps" in out
    assert "v1/0" in out
    assert "28 prompts" in out
    assert "v1 ← v0" in out
    assert "trained_on.dataset_sha256" in out
    assert "31 prompts" in out, "by now"


def test_activate_switches_and_none_switches_off(run: Run, gateway: FakeGateway) -> None:
    assert "active: v2" in run("priors", "activate", "v2").out
    assert gateway.active == "v2"
    assert "active: none" in run("priors", "activate", "none").out
    assert gateway.active is None


def test_what_is_activated_stays_until_it_is_released(run: Run, gateway: FakeGateway) -> None:
    assert "until `latentevolve priors release`" not in run("priors", "list").out
    assert "until `latentevolve priors release`" in run("priors", "activate", "v2").out
    assert "until `latentevolve priors release`" in run("priors", "list").out
    assert "pinned" in run("stats").out
    assert "active: v2, until a night makes another one" in run("priors", "release").out
    assert not gateway.pinned
    assert "pinned" not in run("stats").out
    gateway.versions, gateway.active, gateway.pinned = [], None, True
    assert "until `latentevolve priors release`" in run("priors", "list").out


def test_a_rollback_says_what_is_active_and_that_it_stays(run: Run, gateway: FakeGateway) -> None:
    out = run("priors", "rollback").out
    assert "active: none" in out
    assert "until `latentevolve priors release`" in out
    nothing = run("priors", "rollback")
    assert nothing.code == 1
    assert "nothing is known to have been active before" in nothing.err


def test_two_versions_are_shown_side_by_side(run: Run, gateway: FakeGateway) -> None:
    lines = run("priors", "compare", "v1", "v2").out.splitlines()
    assert lines[1].split("  ")[:3] == ["v1/0", "v2/0", "0.910"]
    for shown in ("100 %", "75 %", "0.420", "serves, +0.31 on 28"):
        assert shown in lines[1]
    assert lines[2].startswith("–     v2/1")
    unknown = run("priors", "compare", "v1", "v9")
    assert (unknown.code, "v1, v2" in unknown.err) == (1, True)


@pytest.mark.parametrize("command", ["show", "activate"])
def test_unknown_version_lists_the_known(run: Run, gateway: FakeGateway, command: str) -> None:
    ran = run("priors", command, "v9")
    assert ran.code == 1
    assert "there is no prior v9" in ran.err
    assert "v1, v2" in ran.err


# --- stats


def test_stats_draw_the_distribution_of_rewards(run: Run, gateway: FakeGateway) -> None:
    out = run("stats").out
    assert "hit rate  50.0 %" in out
    assert "v1/0 serves: +0.31 on 28 prompts, e-value 44.9 for it, 0.2 against it" in out
    assert "6 episodes, whose prompts came 9 times" in out
    assert "7 refused: the disk is nearly full" in out
    bars = {line.split()[0]: line.count("█") for line in out.splitlines() if "█" in line}
    assert set(bars) == {"0.5–0.6", "0.6–0.7", "0.7–0.8", "0.8–0.9"}
    assert bars["0.7–0.8"] == 3 * bars["0.6–0.7"]


def test_feedback_says_one_thing_of_one_answer(run: Run, gateway: FakeGateway) -> None:
    for option, value in (("rating", 0.0), ("demonstration", "It is 4."), ("comment", "not nice")):
        ran = run("feedback", "chatcmpl-1", f"--{option}", str(value), "--json")
        assert json.loads(ran.out) == {"feedback_id": EPISODE}
        assert gateway.said[-1] == {"inference_id": "chatcmpl-1", "metric_name": option, "value": value}
    for wrong in ([], ["--rating", "1", "--comment", "fine"]):
        ran = run("feedback", "chatcmpl-1", *wrong)
        assert (ran.code, "give one of" in ran.err) == (2, True)
    assert len(gateway.said) == 3
