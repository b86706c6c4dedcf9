"""A gateway and an engine that die, and the Redis topology as plain processes."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import psutil
import pytest

from memory.registry import PriorRegistry
from memory.signal import announce
from memory.state import State
from tests.e2e.conftest import CHOICES, HEADLINES, TOPIC
from tests.e2e.processes import READY_S, TREE, Gateway, running, start, wait_for
from tests.redis_server import RedisServer

ENOUGH_FOR_A_NIGHT = 14


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def tree(redis_url: str, tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A tree without a worker, whose gateway the tests kill and `serve` starts again."""
    with running(
        [*TREE, "--no-worker"],
        tmp_path_factory.mktemp("crash"),
        model=tiny_model,
        broker_url=redis_url,
        twin="false",
        max_model_len=1024,
        night_min_episodes=4,
        night_steps=4,
        night_episodes=0,
        remember_threshold=0.0,
        night_min_reward=0.0,
        prior_poll_s=60,
    ) as gateway:
        yield gateway


def gateway_pid(tree: Gateway) -> int:
    """Return the process of the gateway that was started last."""
    log = (tree.data_dir / "logs" / "gateway.log").read_text(errors="replace")
    return int(re.findall(r"^--- started, process (\d+)$", log, re.MULTILINE)[-1])


def engine_pid(tree: Gateway) -> int:
    """Return the process of vLLM's engine core."""
    processes = psutil.Process(gateway_pid(tree)).children(recursive=True)
    return next(process.pid for process in processes if "EngineCore" in "".join(process.cmdline()))


def wait_for_another(tree: Gateway, gateway: int) -> None:
    """Wait until `serve` has started another gateway and that is ready."""
    deadline = time.monotonic() + READY_S
    while gateway_pid(tree) == gateway:
        assert time.monotonic() < deadline, tree.process.tail()
        time.sleep(0.1)
    wait_for(f"{tree.url}/readyz", tree.process)


def store_until_killed(gateway: Gateway, seconds: float) -> list[str]:
    """Send refined requests, kill the gateway some seconds after the first store, return acknowledged ids."""
    acknowledged: list[str] = []
    timer = threading.Timer(seconds, os.kill, (gateway_pid(gateway), signal.SIGKILL))
    try:
        for index in range(60):
            question = TOPIC.format(HEADLINES[index % len(HEADLINES)])
            _, headers = gateway.ask(question, choices=CHOICES, effort="medium", seed=index)
            trace = gateway.settled_trace(headers)
            if trace["remembered"] == "stored":
                acknowledged.append(trace["episode_id"])
                if len(acknowledged) == 1:
                    timer.start()
    except (httpx.HTTPError, openai.APIError):
        pass
    finally:
        if acknowledged:
            timer.join()
    return acknowledged


def test_every_acknowledged_episode_survives_kill_nine(tree: Gateway) -> None:
    # Once: a start takes half a minute. The store alone is killed many times in tests/memory.
    killed = gateway_pid(tree)
    acknowledged = store_until_killed(tree, seconds=2.5)
    assert acknowledged, "nothing was stored that could be lost"
    wait_for_another(tree, killed)
    stats = tree.get("/v1/memory/stats")
    assert stats["spaces"][stats["space"]]["episodes"] >= len(set(acknowledged))
    for episode_id in acknowledged:
        episode = tree.get(f"/v1/memory/episodes/{episode_id}")
        assert episode["id"] == episode_id
        assert episode["answer_token_ids"]


def test_engine_that_dies_is_started_again_and_answers(tree: Gateway) -> None:
    gateway = gateway_pid(tree)
    os.kill(engine_pid(tree), signal.SIGKILL)
    wait_for_another(tree, gateway)
    text, _ = tree.ask("Name a colour.", max_tokens=4)
    assert text


def test_night_and_swap_over_redis(tree: Gateway, redis_url: str) -> None:
    for headline in HEADLINES:  # a night needs some more episodes than the kills left
        _, headers = tree.ask(TOPIC.format(headline), choices=CHOICES, effort="medium", seed=2)
        tree.settled_trace(headers)
        stats = tree.get("/v1/memory/stats")
        if stats["spaces"][stats["space"]]["episodes"] >= ENOUGH_FOR_A_NIGHT:
            break
    log = tree.data_dir / "worker.log"
    command = [sys.executable, "-m", "celery", "--app", "worker.app", "worker", "--loglevel", "INFO"]
    worker = start(command, tree.env, log)
    try:
        record = tree.night()
        assert record["state"] in {"promoted", "refused"}, record
        # In the state, as a night does it. Polling sleeps for a minute here: only the Redis signal can tell.
        space = tree.get("/v1/memory/stats")["space"]
        with State.in_folder(tree.data_dir) as state:
            PriorRegistry(tree.data_dir / "priors", space, state).activate(record["version"])
        assert announce(redis_url, space)
        for _ in range(50):
            _, headers = tree.ask(TOPIC.format(HEADLINES[0]), max_tokens=1, effort="low")
            if headers["x-latent-prior"] == record["version"]:
                break
        assert headers["x-latent-prior"] == record["version"]
    finally:
        worker.end()
