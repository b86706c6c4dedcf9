"""A night on real episodes, its swap and its roll-back (issue: held by tests, 5)."""

import threading

import pytest

from tests.e2e.conftest import HEADLINES, TOPIC, UNRELATED
from tests.e2e.processes import Gateway

QUESTION = TOPIC.format(HEADLINES[-1])
LONG = TOPIC.format(HEADLINES[-2]) + " Then explain your choice at length."


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
def night(remembering: Gateway, before: dict[str, str]) -> dict:
    """A finished night, and the version that it published in front of later requests."""
    record = remembering.night()
    assert record["state"] in {"promoted", "refused"}, record
    if record["state"] == "refused":  # the gate's word on so few episodes is not what is tested here
        remembering.post(f"/v1/priors/{record['version']}/activate")
    return record


def wait_for_prior(gateway: Gateway, version: str) -> None:
    """Wait until requests are served by this version."""
    for _ in range(100):
        _, headers = gateway.ask(QUESTION, max_tokens=1, effort="low")
        if headers["x-latent-prior"] == version:
            return
    raise TimeoutError(f"still {headers['x-latent-prior']}, expected {version}")


def test_night_measures_all_five_controls(night: dict) -> None:
    names = {row["control"] for row in night["gate"]["controls"]}
    assert names == {"none", "knn", "mean", "random", "active"}
    assert night["gate"]["n"] > 0
    assert night["gate"]["reason"]
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


def test_request_in_flight_finishes_on_its_version(remembering: Gateway, night: dict) -> None:
    wait_for_prior(remembering, night["version"])
    options = {"effort": "low", "floor": 1.0}
    expected, _ = remembering.ask(LONG, max_tokens=96, **options)
    stream = remembering.openai.chat.completions.with_raw_response.create(
        model=remembering.model,
        messages=[{"role": "user", "content": LONG}],
        max_tokens=96,
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


def test_second_night_while_one_runs_is_refused(remembering: Gateway, night: dict) -> None:
    first = remembering.post("/v1/consolidations", {}, status=202)
    error = remembering.post("/v1/consolidations", {}, status=409)["error"]
    assert first["id"] in error["message"]
    for _ in range(600):
        record = remembering.get(f"/v1/consolidations/{first['id']}")
        if record["state"] not in {"queued", "running"}:
            break
        threading.Event().wait(0.5)
    assert record["state"] in {"promoted", "refused"}, record
    assert record["parent"] == night["version"]
    remembering.post(f"/v1/priors/{night['version']}/activate")
