"""One running tree (gateway, engine, worker) on the real small model, for all end-to-end tests."""

from collections.abc import Iterator

import pytest

from tests.e2e.processes import TREE, Gateway, running

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
UNRELATED = [
    "Write a haiku about autumn rain.",
    "What is the capital of Portugal?",
    "Name three animals that live in the sea.",
]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The whole tree, as `make serve` starts it, with an empty memory."""
    with running(
        TREE,
        tmp_path_factory.mktemp("served"),
        night_min_episodes=8,
        night_cron="never",
        night_episodes=0,
        night_steps=24,
        max_model_len=1024,
        prior_poll_s=0.2,
        rewards="consistency=0.5,confidence=0.5",  # so that latents can earn their place by confidence
        remember_threshold=0.2,
        night_min_reward=0.2,
        lift_fallback=False,  # whether steering pays on a 135M model is not what is tested here
        vllm_args="--dtype float32",  # as the bare vLLM of test_plain_path
    ) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def remembering(served: Gateway) -> Gateway:
    """The tree after a day of refined topic questions, with answers to replay and latents to recall."""
    stored = earned = 0
    for headline in HEADLINES:
        _, headers = served.ask(TOPIC.format(headline), choices=CHOICES, effort="medium", seed=1)
        trace = served.settled_trace(headers)
        if trace["remembered"] == "stored":
            stored += 1
            earned += served.get(f"/v1/memory/episodes/{trace['episode_id']}")["latent_earned"]
        if stored >= 12 and earned >= 4:
            break
    assert stored >= 8, f"only {stored} answers were remembered"
    assert earned >= 4, f"only {earned} latents earned their place"
    return served
