"""Following a night to each of its ends."""

import json
from collections.abc import Callable

import pytest

import cli.night
from tests.cli.conftest import Ran
from tests.cli.fake_gateway import EVIDENCE, FakeGateway, record
from tests.cli.terminal import on_terminal

Run = Callable[..., Ran]

TRAINING = [
    record("queued"),
    record("running", phase="train", done=1, total=8, message="loss 2.10"),
    record("running", phase="train", done=2, total=8, message="loss 2.05"),
    record("running", phase="train", done=7, total=8, message="loss 1.20"),
    record("running", phase="evidence", done=1, total=5),
]


def test_promoted_night_ends_with_the_table_and_zero(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [
        *TRAINING,
        record("promoted", phase="publish", version="v3", parent="v1", evidence=EVIDENCE),
    ]
    ran = run("night")
    assert ran.code == 0
    assert "v3/0" in ran.out
    for shown in ("31 like 'World'", "28 prompts", "80 %", "55 %", "31 %", "41.5", "serves"):
        assert shown in ran.out
    assert "promoted: v3 is active and serves (before: v1)" in ran.out


def test_a_night_that_no_worker_takes_is_said_to_be_so(
    run: Run, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.night, "QUIET_S", 0.2)
    gateway.nights = [*[record("queued")] * 4, record("promoted", version="v3", evidence=EVIDENCE)]
    assert run("night").err.count("no worker has taken the night yet") == 1


def test_a_latent_that_nothing_could_judge_yet_is_shown_with_dashes(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [record("on trial", phase="publish", version="v3", evidence=EVIDENCE)]
    ran = run("night")
    assert ran.code == 0
    (line,) = (line for line in ran.out.splitlines() if line.startswith("v3/1"))
    assert line.split()[-3:] == ["1", "on", "trial"]
    assert line.count("–") == 3
    assert "on trial: v3 is measured by day" in ran.out


def test_evidence_against_a_latent_has_a_minus(run: Run, gateway: FakeGateway) -> None:
    harmful = EVIDENCE["clusters"][0] | {"e_value": 0.01, "e_against": 33.0, "standing": "retired"}
    gateway.nights = [record("refused", phase="publish", version="v3", evidence={"clusters": [harmful]})]
    assert "-33" in run("night").out


def test_what_an_operator_chose_is_said_beside_the_evidence(run: Run, gateway: FakeGateway) -> None:
    said = "v3/0 serves; v1 was chosen by an operator and stays active"
    gateway.nights = [record("promoted", phase="publish", version="v3", evidence=EVIDENCE, message=said)]
    assert said in run("night").out


def test_pipe_sees_phases_and_quarters_only(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [*TRAINING, record("promoted", version="v3", evidence=EVIDENCE)]
    steps = [line.split("] ")[1] for line in run("night").out.splitlines() if "] " in line]
    assert steps == [
        "queued",
        "train 1/8 loss 2.10",
        "train 2/8 loss 2.05",
        "train 7/8 loss 1.20",
        "evidence 1/5",
    ]


def test_refused_night_is_three_and_says_why(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [record("refused", version="v3", evidence=EVIDENCE, message="v3/0 is retired")]
    ran = run("night")
    assert ran.code == 3
    assert "refused: v3 is proven worse than what is served" in ran.out
    assert "v3/0 is retired" in ran.out


def test_failed_night_is_one_and_says_why(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [*TRAINING, record("failed", error="out of memory")]
    ran = run("night")
    assert ran.code == 1
    assert "failed: out of memory" in ran.out
    assert "worker.log" in ran.out


def test_skipped_night_is_zero_and_says_why(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [record("skipped", message="3 episodes; a night needs 16")]
    ran = run("night")
    assert ran.code == 0
    assert "a night needs 16" in ran.out


def test_json_holds_the_last_record(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [*TRAINING, record("refused", version="v3", evidence=EVIDENCE)]
    ran = run("night", "--json")
    assert ran.code == 3
    assert json.loads(ran.out)["state"] == "refused"
    assert "train 1/8" in ran.err


def test_night_that_is_under_way_is_named(run: Run, gateway: FakeGateway) -> None:
    gateway.night_error, gateway.nights = 409, [record("running")]
    ran = run("night")
    assert ran.code == 1
    assert f"--follow {record('running')['id']}" in ran.err


def test_unreachable_queue_says_what_runs_it(run: Run, gateway: FakeGateway) -> None:
    gateway.night_error, gateway.nights = 503, [record("failed")]
    ran = run("night")
    assert ran.code == 1
    assert "LATENTEVOLVE_BROKER_URL" in ran.err


def test_other_night_can_be_followed(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [record("promoted", version="v3", evidence=EVIDENCE)]
    assert run("night", "--follow", "some-id").code == 0


def test_night_need_not_be_followed(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [record("queued")]
    ran = run("night", "--no-wait")
    assert ran.code == 0
    assert "is queued; follow it with" in ran.out


def test_interrupt_ends_the_watching_and_says_that_the_night_goes_on(gateway: FakeGateway) -> None:
    gateway.nights = [record("running", phase="train", done=1, total=8)]
    command = on_terminal(["night"], {"LATENTEVOLVE_GATEWAY_URL": gateway.url})
    command.read_until("1/8")
    command.type(b"\x03")
    seen = command.read()
    assert "the night itself goes on" in seen
    assert f"--follow {record('running')['id']}" in seen
    assert command.process.returncode == 130


def test_a_stream_that_breaks_off_is_taken_up_again(run: Run, gateway: FakeGateway) -> None:
    gateway.cut = True
    gateway.nights = [*TRAINING, record("promoted", version="v3", evidence=EVIDENCE)]
    ran = run("night")
    assert ran.code == 0
    assert "train 7/8" in ran.out
    assert "promoted: v3" in ran.out


def test_nights_are_listed(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [record("running", phase="train", created_at="2031-01-01T03:00:00Z", message="loss 2")]
    lines = run("night", "list").out.splitlines()
    assert lines[1].split("  ")[:2] == [record("running")["id"], "2031-01-01T03:00:00"]
    assert "running: train" in lines[1]
    assert json.loads(run("night", "list", "--json").out) == {"data": gateway.nights}


def test_nights_are_listed_page_by_page_as_far_as_is_asked_for(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [record("promoted", version="v3")]
    gateway.older_nights = [record("skipped", id=f"older {number}") for number in range(250)]
    listed = run("night", "list", "--limit", "230")
    lines = listed.out.splitlines()
    assert len(lines) == 1 + 230
    assert "older 228" in lines[-1]
    assert "--limit" in listed.err
    everything = json.loads(run("night", "list", "--limit", "300", "--json").out)
    assert everything == {"data": [*gateway.nights, *gateway.older_nights]}


def test_the_open_night_is_cancelled_or_the_one_that_is_named(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [record("running", phase="train")]
    assert f"night {record('running')['id']} is cancelled" in run("night", "cancel").out
    nothing = run("night", "cancel")
    assert nothing.code == 1
    assert "no night is queued or running" in nothing.err
    assert "latentevolve night list" in nothing.err
    ended = run("night", "cancel", record("running")["id"])
    assert ended.code == 1
    assert "has ended as cancelled" in ended.err


def test_a_night_that_is_cancelled_meanwhile_is_one(run: Run, gateway: FakeGateway) -> None:
    gateway.nights = [*TRAINING, record("cancelled", message="cancelled in phase train")]
    ran = run("night")
    assert ran.code == 1
    assert "cancelled: nothing was published" in ran.out
