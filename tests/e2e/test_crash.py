"""Kill -9 of the gateway, and the Redis topology as plain processes (issue: held by tests, 6)."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from memory.registry import PriorRegistry
from memory.signal import announce
from tests.e2e.conftest import CHOICES, HEADLINES, TOPIC
from tests.e2e.processes import GATEWAY, Gateway, environment, free_port, start, wait_for
from tests.redis_server import RedisServer

pytestmark = pytest.mark.xdist_group("crash")  # an engine of its own

ENOUGH_FOR_A_NIGHT = 14


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


class Restartable:
    """A gateway that can be killed and started again on the same data."""

    def __init__(self, data_dir: Path, **settings: object) -> None:
        port = free_port()
        self.env = environment(data_dir, port, **settings)
        self.gateway = Gateway(f"http://127.0.0.1:{port}", None, data_dir, self.env)  # type: ignore[arg-type]

    def start(self) -> Gateway:
        self.gateway.process = start(GATEWAY, self.env, self.gateway.data_dir / "test.log")
        wait_for(f"{self.gateway.url}/readyz", self.gateway.process)
        return self.gateway

    def running(self) -> Gateway:
        """Return the gateway, started when it is not running."""
        process = self.gateway.process
        return self.gateway if process is not None and process.popen.poll() is None else self.start()


@pytest.fixture(scope="module")
def restartable(
    redis_url: str, tiny_model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Restartable]:
    it = Restartable(
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
    )
    yield it
    it.gateway.openai.close()
    if it.gateway.process is not None:
        it.gateway.process.end()


def store_until_killed(gateway: Gateway, seconds: float) -> list[str]:
    """Send refined requests, kill the gateway some seconds after the first store, return acknowledged ids."""
    acknowledged: list[str] = []
    timer = threading.Timer(seconds, gateway.process.kill)
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


def test_every_acknowledged_episode_survives_kill_nine(restartable: Restartable) -> None:
    # Once: a start takes half a minute. The store alone is killed many times in tests/memory.
    gateway = restartable.start()
    acknowledged = store_until_killed(gateway, seconds=2.5)
    assert acknowledged, "nothing was stored that could be lost"
    assert gateway.process.popen.wait(30) == -9
    gateway = restartable.start()
    stats = gateway.get("/v1/memory/stats")
    assert stats["spaces"][stats["space"]]["episodes"] >= len(set(acknowledged))
    for episode_id in acknowledged:
        episode = gateway.get(f"/v1/memory/episodes/{episode_id}")
        assert episode["id"] == episode_id
        assert episode["answer_token_ids"]


def test_night_and_swap_over_redis(restartable: Restartable, redis_url: str) -> None:
    gateway = restartable.running()
    for headline in HEADLINES:  # a night needs some more episodes than the kills left
        _, headers = gateway.ask(TOPIC.format(headline), choices=CHOICES, effort="medium", seed=2)
        gateway.settled_trace(headers)
        stats = gateway.get("/v1/memory/stats")
        if stats["spaces"][stats["space"]]["episodes"] >= ENOUGH_FOR_A_NIGHT:
            break
    log = gateway.data_dir / "worker.log"
    command = [sys.executable, "-m", "celery", "--app", "worker.app", "worker", "--loglevel", "INFO"]
    worker = start(command, restartable.env, log)
    try:
        record = gateway.night()
        assert record["state"] in {"promoted", "refused"}, record
        # On disk, as a night does it. Polling sleeps for a minute here: only the Redis signal can tell.
        space = gateway.get("/v1/memory/stats")["space"]
        PriorRegistry(gateway.data_dir / "priors", space).activate(record["version"])
        assert announce(redis_url, space)
        for _ in range(50):
            _, headers = gateway.ask(TOPIC.format(HEADLINES[0]), max_tokens=1, effort="low")
            if headers["x-latent-prior"] == record["version"]:
                break
        assert headers["x-latent-prior"] == record["version"]
    finally:
        worker.end()
