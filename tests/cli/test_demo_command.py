"""The whole demo against a fake gateway: what it sends, and that it reports what happened."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ran
from tests.cli.fake_gateway import EVIDENCE, FakeGateway, record
from tests.cli.terminal import on_terminal

Run = Callable[..., Ran]

LABELS = ("World", "Sports", "Business", "Technology")


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """Questions whose answers are the words that must never be sent."""
    path = tmp_path / "stream.jsonl"
    rows = [{"question": f"Which animal is number {n}?", "answer": f"secret{n % 4}"} for n in range(16)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def options(gateway: FakeGateway, stream: Path) -> list[str]:
    sizes = ["--limit", "8", "--held-out", "8", "--unrelated", "3"]
    return ["demo", "--data", str(stream), "--url", gateway.url, *sizes]


def test_answers_never_reach_the_server(run: Run, gateway: FakeGateway, stream: Path) -> None:
    gateway.nights = [record("promoted", version="v1", evidence=EVIDENCE)]
    ran = run(*options(gateway, stream))
    assert ran.code == 0, ran.err
    assert len(gateway.asked) == 8 + 8 + 8 + 8 + 3 + 3 + 3
    assert "secret" not in json.dumps(gateway.asked)


def test_allowed_answers_of_a_stream_become_a_grammar(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    path = tmp_path / "labelled.jsonl"
    rows = [{"question": f"q{n}", "answer": LABELS[n % 4], "choices": LABELS} for n in range(16)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    gateway.nights = [record("skipped")]
    run(*options(gateway, path))
    days, unlike = gateway.asked[:-9], gateway.asked[-9:]
    assert all(body["structured_outputs"] == {"choice": list(LABELS)} for body in days)
    assert not any("structured_outputs" in body for body in unlike)


def test_an_answer_from_the_prefix_cache_is_compared_with_one_from_there(
    run: Run, gateway: FakeGateway, stream: Path
) -> None:
    gateway.nights, gateway.rounds = [record("skipped")], True
    ran = run(*options(gateway, stream))
    assert "unlike prompts: 3 of 3 answers byte-identical to plain" in ran.err + ran.out


def test_day_is_medium_and_the_next_compares_none_with_low_and_what_searching_finds(
    run: Run, gateway: FakeGateway, stream: Path
) -> None:
    gateway.nights = [record("promoted", version="v1", evidence=EVIDENCE)]
    run(*options(gateway, stream))
    sent = [(body["latent"]["effort"], body["messages"][0]["content"]) for body in gateway.asked]
    first = {question for effort, question in sent[:8] if effort == "medium"}
    searched = [body for body in gateway.asked[8:] if body["latent"]["effort"] == "medium"]
    none = {question for effort, question in sent[8:] if effort == "none"}
    low = {question for effort, question in sent[8:] if effort == "low"}
    assert len(first) == 8
    assert none == low
    assert len(searched) == 8
    assert {body["messages"][0]["content"] for body in searched} < none
    assert all((body["latent"]["prior"], body["latent"]["store"]) == ("none", False) for body in searched)
    assert not first & none
    assert all(body["temperature"] == 0 for body in gateway.asked)


def test_refused_night_and_lost_accuracy_are_shown_like_a_success(
    run: Run, gateway: FakeGateway, stream: Path, tmp_path: Path
) -> None:
    gateway.nights = [record("refused", version="v1", evidence=EVIDENCE, message="v1/0 is retired")]
    path = tmp_path / "report.json"
    ran = run(*options(gateway, stream), "--report", str(path))
    assert ran.code == 0, "a refusal is a result"
    assert "refused: v1 is proven worse" in ran.out
    assert "v1/0 is retired" in ran.out
    assert "refused v1" in ran.out
    report = json.loads(path.read_text())
    assert report["night"]["state"] == "refused"
    assert report["day_2"]["passes"]["low"]["accuracy"] == 0.0


@pytest.mark.parametrize("label", ["secret2", None])
def test_labels_that_the_night_kept_are_counted_and_the_right_ones_told(
    run: Run, gateway: FakeGateway, stream: Path, label: str | None
) -> None:
    """A choice of the night's own, or the answer that was remembered."""
    gateway.nights, gateway.label = [record("on trial", version="v1", evidence=EVIDENCE)], label
    gateway.recalls = "secret2"
    ran = run(*options(gateway, stream), "--json")
    night = json.loads(ran.out)["night"]
    asked = {body["messages"][0]["content"] for body in gateway.asked[:8]}
    answers = {row["question"]: row["answer"] for row in map(json.loads, stream.read_text().splitlines())}
    right = sum(answers[question] == "secret2" for question in asked)
    assert 0 < right < 8
    assert (night["labels"], night["labels_right"]) == (8, right)
    assert f"{right} of 8 labels right" in ran.err


def test_every_question_is_followed_by_the_instruction_and_none_that_is_unlike(
    run: Run, gateway: FakeGateway, stream: Path
) -> None:
    gateway.nights, gateway.rounds = [record("promoted", version="v1", evidence=EVIDENCE)], True
    more = ("--instruction", "One word.", "--system", "Be brief.")
    ran = run(*options(gateway, stream), *more)
    assert "answers that changed" in ran.out
    assert "One word." not in ran.out, "where questions are told apart"
    days, unlike = gateway.asked[:-9], gateway.asked[-9:]
    assert all(body["messages"][0] == {"role": "system", "content": "Be brief."} for body in days)
    assert all(body["messages"][1]["content"].endswith("\n\nOne word.") for body in days)
    assert all(len(body["messages"]) == 1 for body in unlike)
    assert not any(body["messages"][0]["content"].endswith("One word.") for body in unlike)


def test_json_is_one_document(run: Run, gateway: FakeGateway, stream: Path) -> None:
    gateway.nights = [record("skipped", message="too few")]
    ran = run(*options(gateway, stream), "--json")
    report = json.loads(ran.out)
    assert report["night"]["state"] == "skipped"
    assert set(report["timings_s"]) == {"start", "day 1", "night", "trial", "day 2", "unlike prompts", "all"}
    assert report["unrelated"]["identical"] == 3
    assert "summary" in ran.err


def test_pipe_gets_plain_lines(run: Run, gateway: FakeGateway, stream: Path) -> None:
    gateway.nights = [record("promoted", version="v1", evidence=EVIDENCE)]
    out = run(*options(gateway, stream)).out
    assert not [c for c in out if ord(c) < 32 and c != "\n"]
    assert "effort medium 8/8 recalled 8" in out


def test_terminal_gets_bars(gateway: FakeGateway, stream: Path) -> None:
    gateway.nights = [record("promoted", version="v1", evidence=EVIDENCE)]
    seen = on_terminal(options(gateway, stream), {}).read()
    assert "━" in seen
    assert "summary" in seen


def test_too_short_a_stream_is_wrong_usage_before_anything_starts(
    run: Run, gateway: FakeGateway, stream: Path
) -> None:
    ran = run("demo", "--data", str(stream), "--limit", "12", "--held-out", "8", "--url", gateway.url)
    assert ran.code == 2
    assert gateway.asked == []


def test_report_that_could_not_be_written_is_said_before_anything_starts(
    run: Run, gateway: FakeGateway, stream: Path, tmp_path: Path
) -> None:
    ran = run(*options(gateway, stream), "--report", str(tmp_path / "missing" / "demo.json"))
    assert ran.code == 2
    assert f"no folder {tmp_path / 'missing'}" in ran.err
    assert gateway.asked == []


def test_what_is_on_trial_is_explored_in_the_morning_until_it_stands(
    run: Run, gateway: FakeGateway, tmp_path: Path
) -> None:
    path = tmp_path / "stream.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"q{n}", "answer": 1}) for n in range(60)))
    found = {"n": 14, "mean": 0.2, "e_value": 6.0, "e_against": 0.2, "standing": "on trial"}
    gateway.active = "v1"
    gateway.rows, gateway.nights = {"v1/0": found}, [record("on trial", version="v1", evidence=EVIDENCE)]
    ran = run(*options(gateway, path), "--trial", "30")
    explored = [body for body in gateway.asked if body["latent"].get("explore")]
    assert len(explored) == 30
    assert "v1/0: +0.20 on 14 prompts, evidence 6 of 20, on trial" in ran.out
    held_out = [body for body in gateway.asked if body["latent"]["effort"] == "none"]
    asked = {body["messages"][0]["content"] for body in explored}
    assert not asked & {body["messages"][0]["content"] for body in held_out}

    gateway.asked.clear()
    gateway.rows = {"v1/0": found | {"standing": "serves"}}
    run(*options(gateway, path), "--trial", "30")
    assert not [body for body in gateway.asked if body["latent"].get("explore")]


def test_summary_ends_with_a_picture_of_what_was_right(run: Run, gateway: FakeGateway, stream: Path) -> None:
    gateway.nights = [record("promoted", version="v1", evidence=EVIDENCE)]
    lines = run(*options(gateway, stream)).out.splitlines()
    bars = [line for line in lines if line.endswith("% right")]
    assert [line.split("  ")[0].strip() for line in bars] == [
        "plain",
        "effort medium, without the prior",
        "effort low, one pass, after the night",
    ]
    assert all(line.count("█") + line.count("░") == 40 for line in bars)
