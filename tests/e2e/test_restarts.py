"""A gateway and an engine that die, of the tree that tests share. Last: others would wait for a start."""

import os
import re
import signal
import threading
import time

import httpx
import openai
import psutil

from tests.e2e.conftest import CHOICES, HEADLINES, TOPIC
from tests.e2e.processes import READY_S, Gateway, wait_for


def gateway_pid(served: Gateway) -> int:
    """Return the process of the gateway that was started last."""
    log = (served.data_dir / "logs" / "gateway.log").read_text(errors="replace")
    return int(re.findall(r"^--- started, process (\d+)$", log, re.MULTILINE)[-1])


def engine_pid(served: Gateway) -> int:
    """Return the process of vLLM's engine core."""
    processes = psutil.Process(gateway_pid(served)).children(recursive=True)
    return next(process.pid for process in processes if "EngineCore" in "".join(process.cmdline()))


def wait_for_another(served: Gateway, gateway: int) -> None:
    """Wait until `serve` has started another gateway."""
    deadline = time.monotonic() + READY_S
    while gateway_pid(served) == gateway:
        assert time.monotonic() < deadline, served.process.tail()
        time.sleep(0.1)


def store_until_killed(gateway: Gateway, seconds: float) -> list[str]:
    """Send refined requests, kill the gateway some seconds after the first store, return acknowledged ids."""
    acknowledged: list[str] = []
    timer = threading.Timer(seconds, os.kill, (gateway_pid(gateway), signal.SIGKILL))
    try:
        for index in range(60):
            question = TOPIC.format(f"{HEADLINES[index % len(HEADLINES)]}, part {index + 2}")
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


def test_every_acknowledged_episode_survives_kill_nine(served: Gateway) -> None:
    # Once: a start takes a quarter of a minute. The store alone is killed many times in tests/memory.
    killed = gateway_pid(served)
    acknowledged = store_until_killed(served, seconds=2.5)
    assert acknowledged, "nothing was stored that could be lost"
    wait_for_another(served, killed)
    wait_for(f"{served.url}/readyz", served.process)
    text, _ = served.ask("Name a colour.", max_tokens=4)
    assert text
    stats = served.get("/v1/memory/stats")
    assert stats["spaces"][stats["space"]]["episodes"] >= len(set(acknowledged))
    for episode_id in acknowledged:
        episode = served.get(f"/v1/memory/episodes/{episode_id}")
        assert episode["id"] == episode_id
        assert episode["answer_token_ids"]


def test_engine_that_dies_takes_its_gateway_along_and_another_is_started(served: Gateway) -> None:
    """That one that is started again serves is the test before this one's."""
    gateway = gateway_pid(served)
    os.kill(engine_pid(served), signal.SIGKILL)
    wait_for_another(served, gateway)
    assert not psutil.pid_exists(gateway)
