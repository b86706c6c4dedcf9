"""Two gateways as processes, with one Redis, one PostgreSQL database and one folder of priors.

Episodes are each gateway's own, embedded, unless QDRANT_URL names a server, which both then share. Polling is
off, an hour apart: what reaches a gateway in these tests has been signalled, or looked at when it came back.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from memory.registry import PriorRegistry
from memory.signal import announce
from memory.state import State
from tests.cli.ports import free_port
from tests.e2e.processes import HTTP, Process, environment, start
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer
from tests.scripted_engine import ScriptedEngine
from tests.server.api.inner import MODEL
from tests.tables import row

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
"""Far more than it takes: machines that run tests are busy."""


@dataclass
class Gateway:
    """One of the two, as a client sees it."""

    url: str
    process: Process

    def get(self, path: str) -> dict[str, Any]:
        return dict(HTTP.get(f"{self.url}{path}").raise_for_status().json())

    def post(self, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        return HTTP.post(f"{self.url}{path}", json=body or {})

    def prior(self) -> str:
        """Return the version that an answer names."""
        question = {"model": MODEL, "messages": [{"role": "user", "content": "apples How many?"}]}
        return str(self.post("/v1/chat/completions", question).headers["x-latent-prior"])

    def serves(self, version: str) -> bool:
        return self.prior() == version

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.process.popen.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.popen.send_signal(signal.SIGCONT)


@dataclass
class Topology:
    """What two gateways share, and the worker's side of it."""

    gateways: tuple[Gateway, Gateway]
    redis: RedisServer
    registry: PriorRegistry
    engine: ScriptedEngine

    def publish(self) -> str:
        """Publish a version whose one row covers the question that `Gateway.prior` asks."""
        tokens = self.engine.render([{"role": "user", "content": "apples How many?"}])
        key = np.eye(1, self.engine.space.hidden_size, dtype=np.float32)
        made = row(self.engine.best_latent(tokens), key, -1.0)
        return str(self.registry.publish([made], {"parent": None}))

    def promote(self, version: str | None = None) -> str:
        """Do what a night does in the end: activate what it has published, and tell everybody."""
        version = version or self.publish()
        self.registry.activate(None if version == "none" else version, pinned=True)
        announce(self.redis.url, self.engine.space.id)
        return version


def eventually(holds: Callable[[], bool], what: str) -> float:
    """Wait until something holds and return how long that took, in seconds."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < PATIENCE_S, what
        time.sleep(0.02)
    return time.monotonic() - begun


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Topology]:
    tmp_path = tmp_path_factory.mktemp("two-gateways")
    shared = RedisServer(tmp_path)
    shared.start()
    priors, engine, state_url = tmp_path / "priors", ScriptedEngine(), postgres.database()
    priors.mkdir()
    gateways = []
    for name in ("a", "b"):
        folder, port = tmp_path / name, free_port()
        folder.mkdir()
        (folder / "priors").symlink_to(priors)
        env = environment(
            folder,
            port,
            state_url=state_url,
            broker_url=shared.url,
            memory_url=os.environ.get("QDRANT_URL", "none"),
            prior_poll_s=3600,
            night_cron="never",
            night_episodes=0,
            night_min_episodes=4,
        )
        process = start(
            [sys.executable, "-m", "tests.server.scripted_gateway"], env, tmp_path / f"{name}.log"
        )
        gateways.append(Gateway(f"http://127.0.0.1:{port}", process))
    first, second = gateways
    try:
        for one in gateways:
            eventually(lambda one=one: _ready(one), one.process.tail())  # type: ignore[misc]
        with State(state_url) as state:
            yield Topology((first, second), shared, PriorRegistry(priors, engine.space.id, state), engine)
    finally:
        for one in gateways:
            one.process.popen.send_signal(signal.SIGINT)
        for one in gateways:
            one.process.end()
        shared.stop()


@pytest.fixture
def topology(running: Topology) -> Topology:
    """Both gateways with no prior, listening."""
    eventually(lambda: _listeners(running) == 2, "not both listen")
    running.promote("none")
    eventually(lambda: all(one.serves("none") for one in running.gateways), "the last test's prior serves")
    return running


def _ready(gateway: Gateway) -> bool:
    assert gateway.process.popen.poll() is None, gateway.process.tail()
    try:
        return HTTP.get(f"{gateway.url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def test_both_serve_what_a_night_promotes_and_what_an_operator_chooses_on_either(topology: Topology) -> None:
    first, second = topology.gateways
    version = topology.promote()
    took_s = eventually(lambda: first.serves(version) and second.serves(version), "a promotion is not served")
    print(f"both served the promotion after {took_s:.3f} s")
    other = topology.publish()
    assert first.post(f"/v1/priors/{other}/activate").status_code == 200
    assert first.serves(other)
    took_s = eventually(lambda: second.serves(other), "what an operator chose elsewhere is not served")
    print(f"the other served what an operator chose after {took_s:.3f} s")
    assert second.post("/v1/priors/none/activate").status_code == 200
    eventually(lambda: first.serves("none"), "what an operator took away elsewhere is served")


def test_one_that_was_paused_catches_up(topology: Topology) -> None:
    first, second = topology.gateways
    before = topology.promote()
    eventually(lambda: first.serves(before) and second.serves(before), "a promotion is not served")
    with second.paused():
        for _ in range(2):
            after = topology.promote()
            eventually(lambda after=after: first.serves(after), "one waits for the other")  # type: ignore[misc]
    eventually(lambda: second.serves(after), "who was paused does not catch up")


def test_those_whose_redis_was_away_catch_up_when_it_is_back(topology: Topology) -> None:
    first, second = topology.gateways
    before = topology.promote()
    eventually(lambda: first.serves(before) and second.serves(before), "a promotion is not served")
    topology.redis.stop()
    after = topology.promote()  # nobody is told
    assert (first.prior(), second.prior()) == (before, before), "requests are answered all the same"
    topology.redis.start()
    eventually(lambda: first.serves(after) and second.serves(after), "who was cut off does not catch up")


def test_one_whose_connection_was_cut_catches_up(topology: Topology) -> None:
    first, second = topology.gateways
    with redis.Redis.from_url(topology.redis.url) as client:
        client.client_kill_filter(_type="pubsub")
    version = topology.promote()
    eventually(lambda: first.serves(version) and second.serves(version), "who was cut off does not catch up")


def _listeners(topology: Topology) -> int:
    with redis.Redis.from_url(topology.redis.url) as client:
        return len(client.client_list(_type="pubsub"))


def test_nights_traces_and_feedback_are_of_both(topology: Topology) -> None:
    first, second = topology.gateways
    question = {"model": MODEL, "messages": [{"role": "user", "content": "pears How many?"}]}
    asked = first.post("/v1/chat/completions", question)
    trace = asked.headers["x-latent-trace"]
    eventually(
        lambda: HTTP.get(f"{second.url}/v1/latent/traces/{trace}").status_code == 200, "no trace of the other"
    )
    said = {"inference_id": asked.json()["id"], "metric_name": "rating", "value": True}
    eventually(lambda: second.post("/v1/feedback", said).status_code == 200, "no feedback by the other")
    night = first.post("/v1/consolidations").json()
    assert night["id"] in [one["id"] for one in second.get("/v1/consolidations")["data"]]
