"""A day and a night on the real small model, in its own precision; queue and swap go over Redis, and the
worker is a process that the tree knows nothing of."""

import json
import sys
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from cli.demonstration.stream import EXAMPLES
from memory.registry import PriorRegistry
from memory.signal import announce
from memory.state import State
from tests.e2e.conftest import CHOICES, HEADLINES, TOPIC, UNRELATED, messages, wait_for_prior
from tests.e2e.processes import TREE, Gateway, running, start
from tests.redis_server import RedisServer

TOPICS = ["World", "Sports", "Business", "Technology"]
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
CLOSED = {
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": TOPICS}},
    "required": ["topic"],
}


class Topic(BaseModel):
    topic: Literal["World", "Sports", "Business", "Technology"]


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def tree(redis_url: str, small_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(
        [*TREE, "--no-worker"],
        tmp_path_factory.mktemp("real"),
        model=small_model,
        broker_url=redis_url,
        night_min_episodes=8,
        night_cron="never",
        night_episodes=0,
        night_steps=4,
        night_batch=2,
        max_model_len=1024,
        prior_poll_s=60,  # longer than `wait_for_prior` waits: only the signal can tell of a swap
        rewards="consistency=0.5,confidence=0.5",
        remember_threshold=0.2,
        night_min_reward=0.2,
    ) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def day(tree: Gateway) -> Gateway:
    """The tree after it was asked about headlines until there is enough for a night."""
    stored = 0
    for headline in HEADLINES[:-1]:
        _, headers = tree.ask(TOPIC.format(headline), choices=CHOICES, effort="medium", seed=1)
        stored += tree.settled_trace(headers)["remembered"] == "stored"
        if stored >= 20:  # the night leaves out those whose label is not sure
            break
    assert stored >= 12, f"only {stored} answers were remembered"
    return tree


def test_hooks_into_vllm_equal_their_references(tree: Gateway) -> None:
    ready = tree.get("/readyz")
    checks = {check["name"]: check for check in ready["checks"]}
    assert ready["ready"]
    assert ready["steering"]
    assert {"log-probabilities", "mixed-prompt", "key", "gradient"} <= set(checks)
    assert all(check["ok"] for check in checks.values()), checks
    assert checks["key"]["value"] > 0.999
    assert checks["gradient"]["value"] > 0.9


def test_choices_are_calibrated_and_unlike_prompts_recall_nothing(day: Gateway) -> None:
    text, headers = day.ask(TOPIC.format(HEADLINES[-1]), choices=CHOICES, effort="medium", store=False)
    assert headers["x-latent-mode"] == "calibrated"
    assert text in CHOICES
    for question in UNRELATED:
        _, headers = day.ask(question, effort="low", prior="none")
        assert headers["x-latent-mode"] == "plain", question
        assert headers["x-latent-reason"] == "nothing-recalled"


def test_free_text_on_which_nothing_agrees_is_answered_as_plain_and_not_remembered(tree: Gateway) -> None:
    lines = (EXAMPLES / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    for question in [json.loads(line)["question"] for line in lines[1:4]]:
        plain, _ = tree.ask(question, max_tokens=24, effort="none")
        text, headers = tree.ask(question, max_tokens=24, effort="medium")
        assert (text, headers["x-latent-reason"]) == (plain, "no-agreement"), question
        assert tree.trace(headers)["remembered"] == "no"


def searched(gateway: Gateway, text: str, **options: object) -> tuple[ChatCompletion, str]:
    """Return the answer at effort medium, and its mode."""
    raw = gateway.openai.chat.completions.with_raw_response.create(
        model=f"{gateway.model}:medium", messages=messages(text), temperature=0, **options
    )
    return raw.parse(), raw.headers["x-latent-mode"]


@pytest.mark.parametrize(
    ("client", "schema"),
    [
        ("pydantic's, of langchain and instructor", Topic.model_json_schema()),
        ("zod's, of Vercel's AI SDK", {"$schema": DRAFT_7, **CLOSED, "additionalProperties": False}),
    ],
)
def test_a_json_schema_of_one_enum_is_scored_as_choices(
    day: Gateway, client: str, schema: dict[str, Any]
) -> None:
    answer, mode = searched(
        day,
        TOPIC.format(HEADLINES[0]),
        max_tokens=48,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "topic", "schema": schema, "strict": True},
        },
    )
    assert mode == "calibrated"
    assert json.loads(answer.choices[0].message.content)["topic"] in TOPICS


@pytest.mark.parametrize(
    ("client", "fields"),
    [
        ("langchain", {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}),
        ("instructor", {"tool_choice": "required", "parallel_tool_calls": False}),
    ],
)
def test_a_strict_tool_is_called_as_its_schema_says(
    day: Gateway, client: str, fields: dict[str, Any]
) -> None:
    answer, mode = searched(day, "What is the weather in Paris?", max_tokens=64, tools=[TOOL], **fields)
    assert mode in ("voted", "plain")
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)


@pytest.fixture(scope="module")
def night(day: Gateway) -> Iterator[dict]:
    """A night's record, its worker still running."""
    log = day.data_dir / "worker.log"
    command = [sys.executable, "-m", "celery", "--app", "worker.app", "worker", "--loglevel", "INFO"]
    worker = start(command, day.env, log)
    try:
        yield day.night()
    finally:
        worker.end()


def test_night_over_redis_ends_with_a_version_that_serves_what_it_is_for_and_nothing_else(
    day: Gateway, night: dict, redis_url: str
) -> None:
    assert night["state"] in {"promoted", "on trial", "refused"}, night
    day.post("/v1/priors/none/activate")
    wait_for_prior(day, "none")
    # In the state, as a night does it: the gateway hears of it from Redis alone.
    space = day.get("/v1/memory/stats")["space"]
    with State.in_folder(day.data_dir) as state:
        PriorRegistry(day.data_dir / "priors", space, state).activate(night["version"], pinned=True)
    assert announce(redis_url, space)
    wait_for_prior(day, night["version"])
    text, headers = day.ask(TOPIC.format(HEADLINES[-1]), effort="low", floor=1.0)
    assert text
    assert (headers["x-latent-mode"], headers["x-latent-prior"]) == ("prior", night["version"])
    for question in UNRELATED:
        _, headers = day.ask(question, effort="low")
        assert headers["x-latent-mode"] == "plain", question
