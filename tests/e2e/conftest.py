"""One running tree (gateway, engine, worker) on the tiny model, for most end-to-end tests."""

import time
from collections.abc import Iterator

import pytest

from config.settings import DEFAULT_MODEL
from tests.e2e.processes import TREE, Gateway, running, wait_for
from tests.e2e.verifier import verifier

CHOICES = ["World", "Sports", "Business", "Technology"]
TOPIC = "Classify the news headline as World, Sports, Business or Technology.\n\nHeadline: {}"
HEADLINES = [
    "Late goal sends the home side into the final",
    "Central bank lifts its key rate by a quarter point",
    "New phone folds into the size of a matchbox",
    "Border talks resume after a week of silence",
    "Marathon record falls on a windy course",
    "Grocer buys its smaller rival for two billion",
    "Researchers cool a chip to near absolute zero",
    "Voters choose a new parliament on Sunday",
    "Veteran keeper extends contract by two years",
    "Oil slides as warehouses fill up",
    "Telescope finds water on a distant moon",
    "Flood forces thousands from the river delta",
    "Swimmer takes third gold of the week",
    "Car maker cuts its forecast for the year",
    "Open source browser adds offline maps",
    "Ministers agree on a fishing treaty",
    "Rookie pitcher strikes out twelve",
    "Airline orders forty new jets",
    "Battery charges to full in nine minutes",
    "Peacekeepers leave the island after ten years",
    "Cyclist wins the mountain stage alone",
    "Shares of the toy maker double on debut",
    "Robot arm learns to fold shirts",
    "Two countries reopen their embassies",
]
WORDS = sorted({word for headline in HEADLINES for word in headline.split()})
"""So many to choose from that a latent changes the choice."""

UNRELATED = [
    "Write a haiku about autumn rain.",
    "What is the capital of Portugal?",
    "Name three animals that live in the sea.",
]


STEER = {"latent": {"effort": "low", "floor": -1.0, "prior": "none"}}
"""Recall whatever is nearest, so that a latent is injected whatever the prompt."""


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def create(gateway: Gateway, text: str, **options: object):
    """Return (parsed answer, headers) of a steered chat completion."""
    raw = gateway.openai.chat.completions.with_raw_response.create(
        model=gateway.model,
        messages=messages(text),
        **{"max_tokens": 16, "temperature": 0, "extra_body": STEER} | options,
    )
    assert raw.headers["x-latent-mode"] == "recall", raw.headers
    return raw.parse(), raw.headers


def wait_for_prior(gateway: Gateway, version: str) -> None:
    """Wait until requests are served by this version."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        _, headers = gateway.ask(TOPIC.format(HEADLINES[-1]), max_tokens=1, effort="low")
        if headers["x-latent-prior"] == version:
            return
    raise TimeoutError(f"still {headers['x-latent-prior']}, expected {version}")


@pytest.fixture(scope="session")
def judged() -> Iterator[str]:
    """Address of a verifier."""
    with verifier() as url:
        yield url


@pytest.fixture(scope="session")
def served(tiny_model: str, judged: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The whole tree, as `make serve` starts it, with an empty memory."""
    with running(
        TREE,
        tmp_path_factory.mktemp("served"),
        model=tiny_model,
        served_model_name=DEFAULT_MODEL,  # as the README's examples call it
        night_min_episodes=8,
        night_cron="never",
        night_episodes=0,
        night_steps=24,
        max_model_len=1024,
        prior_poll_s=0.2,
        rewards="verifier=1",  # so that latents can earn their place
        verifier_url=judged,
        remember_threshold=0.2,
        night_min_reward=0.2,
        vllm_args="--dtype float32",  # as the bare vLLM of test_plain_path
    ) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def there(request: pytest.FixtureRequest) -> None:
    """Wait for the gateway of the shared tree, whose end the test before may have been about."""
    if "served" in request.fixturenames:
        gateway = request.getfixturevalue("served")
        wait_for(f"{gateway.url}/readyz", gateway.process)


@pytest.fixture(scope="session")
def remembering(served: Gateway) -> Gateway:
    """The tree after a day of refined topic questions, with answers to replay and latents to recall."""
    stored = earned = 0
    for headline in HEADLINES:
        _, headers = served.ask(TOPIC.format(headline), choices=WORDS, effort="high", steps=2, seed=1)
        trace = served.settled_trace(headers)
        if trace["remembered"] == "stored":
            stored += 1
            earned += served.get(f"/v1/memory/episodes/{trace['episode_id']}")["latent_earned"]
        if stored >= 12 and earned >= 4:
            break
    assert stored >= 8, f"only {stored} answers were remembered"
    assert earned >= 4, f"only {earned} latents earned their place"
    return served
