"""Real Celery workers, on a folder and on a real Redis, with a real model that is tiny."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from config.queue import NIGHT_TASK, NightQueue, make_celery
from config.settings import Settings
from memory.episode import Episode
from memory.night import NightRecord
from model.transformers_engine import TransformersEngine
from tests.redis_server import RedisServer
from tests.scripted_engine import ScriptedEngine
from tests.worker.conftest import Place, scripted_episodes
from tests.worker.real_episodes import real_episodes

pytestmark = pytest.mark.slow

PATIENCE_S = 200.0


@pytest.fixture(scope="module")
def remembered(tiny_model: str) -> Iterator[list[Episode]]:
    engine = TransformersEngine(tiny_model, length=16, placement="user_turn_end")
    yield real_episodes(engine)
    asyncio.run(engine.close())


def wait_until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:g} s for {what}")
        time.sleep(0.05)


def settings_of(root: Path, model: str, **changes: Any) -> Settings:
    # Long enough to be seen training, and ended then, on a machine that does other work.
    return Settings(data_dir=root, model=model, night_steps=60, night_batch=1, _env_file=None, **changes)


@contextmanager
def worker(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker, and kill it with all of its children at the end."""
    given = settings.model_dump(mode="json", exclude_unset=True)
    environment = {f"LATENTEVOLVE_{name.upper()}": str(value) for name, value in given.items()}
    with (settings.data_dir / "worker.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "-l", "INFO"],
            env={**os.environ, **environment, "LATENTEVOLVE_NIGHT_STEP": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def is_training(place: Place, record: NightRecord) -> bool:
    found = place.log.get(record.id)
    assert found is not None
    assert not found.ended, found
    return found.phase == "train" and found.done >= 1


def has_recovered(root: Path) -> bool:
    """Whether a worker has looked what others have left, with which it begins."""
    return "succeeded" in (root / "worker.log").read_text()


def phase_of(place: Place, record: NightRecord) -> str:
    found = place.log.get(record.id)
    assert found is not None
    return found.phase


def members(process: "subprocess.Popen[bytes]") -> list[int]:
    """Return the processes of the worker's session that there still are."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == process.pid and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def has_ended(place: Place, record: NightRecord) -> bool:
    found = place.log.get(record.id)
    return found is not None and found.ended


def check_result(place: Place, record: NightRecord) -> None:
    log = (place.settings.data_dir / "worker.log").read_text()
    found = place.log.get(record.id)
    assert found is not None
    assert found.state in {"promoted", "on trial", "refused"}, f"{found}\n{log}"
    assert found.version == place.registry.active() == "v1"
    assert [manifest["version"] for manifest in place.registry.versions()] == ["v1"]


def test_an_idle_worker_is_small_and_takes_nights_from_redis_also_after_an_outage(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    """There is no such model, so these nights end when they load it."""
    server = RedisServer(tmp_path)
    server.start()
    settings = settings_of(tmp_path, "none", broker_url=server.url)
    place, queue = Place(settings, engine.space.id), NightQueue(settings)
    with worker(settings) as process:
        log = tmp_path / "worker.log"
        wait_until(lambda: has_recovered(tmp_path), "the worker")
        assert resident_mib(process) < 100
        assert "did you mean LATENTEVOLVE_NIGHT_STEPS?" in log.read_text()
        for outage in (False, True):
            if outage:
                server.stop()
                wait_until(lambda: "Connection to broker lost" in log.read_text(), "the outage")
                server.start()
            record = place.queue(scripted_episodes(engine, 4))
            queue.send(record.id)
            wait_until(lambda record=record: has_ended(place, record), "the end of the night")
            found = place.log.get(record.id)
            assert found is not None
            assert (found.state, found.phase) == ("failed", "load")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    server.stop()


def test_what_cannot_be_read_ends_no_worker_of_the_folder_queue(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    settings = settings_of(tmp_path, "none")
    place, celery = Place(settings, engine.space.id), make_celery(settings)
    folder = tmp_path / "queue"
    for exchange in ("nights", "celeryev", "celery.pidbox", "reply.celery.pidbox"):
        (folder / "control" / f"{exchange}.exchange").write_bytes(b'[["cut sho')
    messages = folder / "messages"
    NightQueue(settings).send("cut short")
    [whole] = messages.iterdir()
    text = json.loads(whole.read_text())
    for name, content in {
        "half": whole.read_bytes()[:200],
        "empty": b"",
        "zeros": bytes(200),
        "pickle": json.dumps(text | {"content-type": "application/x-python-serialize"}).encode(),
        "plain": json.dumps(text | {"content-type": "text/plain"}).encode(),
        "unknown encoding": json.dumps(text | {"content-encoding": "klingon"}).encode(),
        "other body": json.dumps(text | {"body": "AAAA"}).encode(),
        "no headers": json.dumps(text | {"headers": {}}).encode(),
    }.items():
        (messages / f"0{name}.nights.msg").write_bytes(content)
    celery.send_task("latentevolve.nobody-knows")
    celery.send_task(NIGHT_TASK, [])
    celery.send_task(NIGHT_TASK, ["nobody knows"])
    record = place.queue(scripted_episodes(engine, 4))
    celery.send_task(NIGHT_TASK, [record.id])
    with worker(settings) as process:
        wait_until(lambda: process.poll() is not None or has_ended(place, record), "the end of the night")
        log = (tmp_path / "worker.log").read_text()
        assert has_ended(place, record), log
        wait_until(lambda: not list(messages.glob("*.nights.msg")), "an empty queue")
        assert process.poll() is None, log


def resident_mib(process: "subprocess.Popen[bytes]") -> float:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_stopped_worker_ends_at_once_and_a_killed_one_loses_no_night_of_the_folder_queue(
    tmp_path: Path, tiny_model: str, remembered: list[Episode]
) -> None:
    """One that stops puts the message back; one that is killed cannot, but there is the night's record."""
    settings = settings_of(tmp_path, tiny_model)
    place = Place(settings, remembered[0].space)
    queue = NightQueue(settings)
    with worker(settings) as process:
        wait_until(lambda: has_recovered(tmp_path), "the worker")
        record = place.queue(remembered)
        queue.send(record.id)
        wait_until(lambda: phase_of(place, record) == "load", "the loading of the model")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert members(process) == []
    assert queue.waiting() == 1
    assert place.log.attempt(record.id, 0) == 1, "what was stopped on purpose is no failed attempt"
    with worker(settings) as process:
        wait_until(lambda: is_training(place, record), "the training")
        kill(process)
    with worker(settings):
        wait_until(lambda: has_ended(place, record), "the end of the night")
    check_result(place, record)
    assert "training goes on at step" in (tmp_path / "worker.log").read_text()


def test_a_stopped_worker_of_redis_ends_at_once_and_its_night_later(
    tmp_path: Path, tiny_model: str, remembered: list[Episode], redis_url: str
) -> None:
    settings = settings_of(tmp_path, tiny_model, broker_url=redis_url)
    place = Place(settings, remembered[0].space)
    with redis.Redis.from_url(redis_url) as client, client.pubsub() as channel, worker(settings) as first:
        channel.subscribe(f"latentevolve:priors:{place.space}")
        assert channel.get_message(timeout=10)["type"] == "subscribe"
        record = place.queue(remembered)
        make_celery(settings).send_task(NIGHT_TASK, [record.id])
        wait_until(lambda: is_training(place, record), "the training")
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 0
        with worker(settings):
            wait_until(lambda: has_ended(place, record), "the end of the night")
        check_result(place, record)
        if place.registry.active():
            assert channel.get_message(timeout=10)["type"] == "message"
