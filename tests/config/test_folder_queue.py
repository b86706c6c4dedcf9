"""The queue in a folder bears files that were cut short."""

import json
import os
import threading
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from config.folder_queue import sweep
from config.queue import QUEUE, NightQueue, make_celery
from config.settings import Settings


class Taker:
    """Takes messages as a worker does."""

    def __init__(self, settings: Settings) -> None:
        self.app = make_celery(settings)
        self.connection = self.app.connection_for_read()
        self.queue = self.app.amqp.queues[QUEUE](self.connection.default_channel)
        self.queue.declare()

    def take(self) -> str | None:
        """Return the id of the night that the next message is about."""
        message = self.queue.get(no_ack=True)
        return None if message is None else message.payload[0][0]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, broker_url=None, _env_file=None)


@pytest.fixture
def folder(settings: Settings) -> Path:
    make_celery(settings)
    return settings.data_dir / "queue"


def test_messages_are_taken_once_in_their_order(settings: Settings) -> None:
    queue, first, second = NightQueue(settings), Taker(settings), Taker(settings)
    assert queue.waiting() == 0
    for night in ("a", "b", "c"):
        queue.send(night)
    assert queue.waiting() == 3
    assert [first.take(), second.take(), first.take(), second.take()] == ["a", "b", "c", None]
    assert queue.waiting() == 0


def test_only_what_no_living_process_can_be_at_is_swept(settings: Settings, folder: Path) -> None:
    assert sweep(folder / "not there") == 0
    NightQueue(settings).send("a")
    [message] = (folder / "messages").glob("*.msg")
    half = folder / "messages" / f".{message.name}"  # of a sender
    taken = folder / "processed" / message.name  # of a taker
    for left in (half, taken):
        left.write_bytes(message.read_bytes())
        os.utime(left, (0, 0))  # a message may have waited for long before it was taken
    assert sweep(folder) == 0
    assert sweep(folder, age_s=0) == 2
    assert not half.exists()
    assert not taken.exists()
    assert Taker(settings).take() == "a"


def whole_message(settings: Settings, folder: Path) -> dict[str, Any]:
    NightQueue(settings).send("whole")
    [file] = (folder / "messages").glob("*.msg")
    found = json.loads(file.read_bytes())
    file.unlink()
    return dict(found)


def spoilt_messages(whole: dict[str, Any]) -> dict[str, bytes]:
    text = json.dumps(whole).encode()
    return {
        "empty": b"",
        "half": text[: len(text) // 2],
        "zeros": bytes(len(text)),
        "no text": b"\xff\xfe" * 9,
        "null": b"null",
        "list": b"[]",
        "no parts": b"{}",
        "no properties": json.dumps(whole | {"properties": None}).encode(),
        "no base64": json.dumps(whole | {"body": "12345"}).encode(),
    }


def test_messages_that_cannot_be_read_are_thrown_away(
    settings: Settings, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt = spoilt_messages(whole_message(settings, folder))
    for name, content in spoilt.items():
        (folder / "messages" / f"0{name}.{QUEUE}.msg").write_bytes(content)
    NightQueue(settings).send("a")
    taker = Taker(settings)
    assert taker.take() == "a"
    assert taker.take() is None
    assert [file for file in folder.rglob("*") if file.suffix == ".msg"] == []
    assert caplog.text.count("thrown away") == len(spoilt)


@pytest.mark.parametrize(
    "content", [b"", b"[", bytes(60), b"\xff", b"{}[]", b"null", b"7", b"[7]", b'[["a"]]']
)
def test_a_spoilt_table_stops_neither_sender_nor_taker(
    settings: Settings, folder: Path, content: bytes
) -> None:
    NightQueue(settings).send("a")
    [table] = (folder / "control").glob("*.exchange")
    table.write_bytes(content)
    NightQueue(settings).send("b")
    table.write_bytes(content)
    taker = Taker(settings)
    assert {taker.take(), taker.take()} == {"a", "b"}


def test_a_table_that_is_spoilt_while_a_gateway_runs_does_not_stop_it(
    settings: Settings, folder: Path
) -> None:
    queue = NightQueue(settings)
    queue.send("a")
    [table] = (folder / "control").glob("*.exchange")
    table.write_bytes(b"[[")
    queue.send("b")
    assert queue.waiting() == 2


def test_a_taker_never_meets_half_a_message(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    sent, found = 100, []
    queue, taker = NightQueue(settings), Taker(settings)

    def send() -> None:
        for number in range(sent):
            queue.send(f"{number}" * 5000)

    sender = threading.Thread(target=send)
    sender.start()
    while sender.is_alive() or queue.waiting():
        try:
            night = taker.take()
        except Empty:
            continue
        if night is not None:
            found.append(night)
    sender.join()
    assert len(set(found)) == sent
    assert "thrown away" not in caplog.text
