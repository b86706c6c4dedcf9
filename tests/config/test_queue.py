"""The queue on a real Redis that goes away, hangs and comes back."""

import os
import signal
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from config.queue import NightQueue
from config.settings import Settings
from tests.redis_server import RedisServer


def test_a_redis_that_was_away_or_hung_takes_nights_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config.queue.SOCKET_TIMEOUT_S", 0.2)
    server = RedisServer(tmp_path)
    server.start()
    try:
        queue = NightQueue(Settings(data_dir=tmp_path, broker_url=server.url, _env_file=None))
        queue.send("a")
        assert queue.waiting() == 1
        server.stop()
        with pytest.raises(OperationalError, match="refused"):
            queue.send("b")
        server.start()
        queue.send("c")
        assert queue.waiting() == 1, "this one kept nothing"
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(OperationalError, match="Timeout"):
            queue.send("d")
        os.kill(server.pid, signal.SIGCONT)
        queue.send("e")
        assert queue.waiting() >= 2
    finally:
        server.stop()
