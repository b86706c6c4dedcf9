"""A night on real episodes, its swap and its roll-back (issue: held by tests, 5)."""

import threading

import pytest

from tests.e2e.conftest import HEADLINES, TOPIC, UNRELATED, WORDS, wait_for_prior
from tests.e2e.processes import Gateway

QUESTION = TOPIC.format(HEADLINES[-1])
LONG = TOPIC.format(HEADLINES[-2]) + " Then explain your choice at length."
LONG_TOKENS = 200  # the tiny model writes a hundred in a second


def plain(gateway: Gateway, question: str, max_tokens: int = 24) -> str:
    return gateway.ask(question, max_tokens=max_tokens, effort="none")[0]


@pytest.fixture(scope="module")
def before(remembering: Gateway) -> dict[str, str]:
    """What unrelated prompts were answered at effort none and low, before any night."""
    answers = {question: plain(remembering, question) for question in UNRELATED}
    for question, answer in answers.items():
        assert remembering.ask(question, max_tokens=24, effort="low")[0] == answer
    return answers


@pytest.fixture(scope="module")
def asked_twice(remembering: Gateway, before: dict[str, str]) -> tuple[dict, dict]:
    """A night that was just queued, and the error that asking for a second one gave."""
    first = remembering.post("/v1/consolidations", {"trigger": "api"}, status=202)
    return first, remembering.post("/v1/consolidations", {}, status=409)["error"]


@pytest.fixture(scope="module")
def night(remembering: Gateway, asked_twice: tuple[dict, dict]) -> dict:
    """A finished night, and the version that it published in front of later requests."""
    record = remembering.ended(asked_twice[0]["id"])
    assert record["state"] in {"promoted", "on trial", "refused"}, record
    if record["state"] != "promoted":  # what so few episodes prove is not what is tested here
        remembering.post(f"/v1/priors/{record['version']}/activate")
    return record


def test_night_tells_the_evidence_of_each_new_row(night: dict) -> None:
    found = night["evidence"]["clusters"]
    assert [one["row"] for one in found] == list(range(len(found)))
    for one in found:
        assert one["n"] > 0
        assert one["standing"] in {"serves", "on trial", "retired"}
        assert 0 <= one["candidate"] <= 1
        assert 0 <= one["baseline"] <= 1
    assert night["version"] == "v1"


def test_gateway_serves_the_version_without_restart(remembering: Gateway, night: dict) -> None:
    wait_for_prior(remembering, night["version"])
    text, headers = remembering.ask(QUESTION, max_tokens=8, effort="low", floor=1.0)
    assert headers["x-latent-mode"] == "prior"
    assert headers["x-latent-prior"] == night["version"]
    assert text
    listed = remembering.get("/v1/priors")
    assert listed["active"] == night["version"]
    assert [entry["version"] for entry in listed["versions"]] == [night["version"]]


def test_unlike_prompts_stay_byte_identical_to_plain(
    remembering: Gateway, night: dict, before: dict[str, str]
) -> None:
    wait_for_prior(remembering, night["version"])
    for question, answer in before.items():
        text, headers = remembering.ask(question, max_tokens=24, effort="low")
        assert headers["x-latent-mode"] == "plain", question
        assert text == answer


def test_explored_request_measures_the_rows_that_cover_it(remembering: Gateway, night: dict) -> None:
    wait_for_prior(remembering, night["version"])
    known = remembering.get("/v1/memory/stats")["prior"]["rows"]
    question = TOPIC.format("Ferry line opens a second route across the bay")
    _, headers = remembering.ask(question, choices=WORDS, effort="low", explore=True)
    measured = remembering.settled_trace(headers)["explored"]["rows"]
    assert set(measured) == {f"{night['version']}/0"}
    now = remembering.get("/v1/memory/stats")["prior"]["rows"]
    assert {row: now[row]["n"] - known[row]["n"] for row in measured} == dict.fromkeys(measured, 1)


def test_request_in_flight_finishes_on_its_version(remembering: Gateway, night: dict) -> None:
    wait_for_prior(remembering, night["version"])
    options = {"effort": "low", "floor": 1.0}
    expected, _ = remembering.ask(LONG, max_tokens=LONG_TOKENS, **options)
    stream = remembering.openai.chat.completions.with_raw_response.create(
        model=remembering.model,
        messages=[{"role": "user", "content": LONG}],
        max_tokens=LONG_TOKENS,
        temperature=0,
        stream=True,
        extra_body={"latent": options},
    )
    assert stream.headers["x-latent-prior"] == night["version"]
    swap = threading.Thread(target=remembering.post, args=("/v1/priors/none/activate",))
    pieces = []
    for chunk in stream.parse():
        if not pieces:
            swap.start()
        if chunk.choices:
            pieces.append(chunk.choices[0].delta.content or "")
    swap.join()
    assert "".join(pieces) == expected
    wait_for_prior(remembering, "none")
    remembering.post(f"/v1/priors/{night['version']}/activate")


def test_roll_back(remembering: Gateway, night: dict) -> None:
    steered, _ = remembering.ask(QUESTION, max_tokens=8, effort="low", floor=1.0, prior=night["version"])
    remembering.post("/v1/priors/none/activate")
    wait_for_prior(remembering, "none")
    text, headers = remembering.ask(QUESTION, max_tokens=8, effort="low", floor=1.0)
    assert headers["x-latent-mode"] == "plain"
    assert text == plain(remembering, QUESTION, 8)
    remembering.post(f"/v1/priors/{night['version']}/activate")
    wait_for_prior(remembering, night["version"])
    assert remembering.ask(QUESTION, max_tokens=8, effort="low", floor=1.0)[0] == steered


def test_second_night_while_one_runs_is_refused(asked_twice: tuple[dict, dict]) -> None:
    first, error = asked_twice
    assert first["id"] in error["message"]
