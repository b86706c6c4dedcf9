"""Polling a gateway that may end at any moment."""

import threading
from typing import Any

import pytest

from cli.screen import Screen
from cli.serving.board import Board
from cli.serving.readiness import Readiness
from tests.cli.ports import free_port


def test_polling_survives_a_gateway_that_ends_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here every second look at the latest answer finds that it has been taken away."""
    looks, enough = 0, threading.Event()

    def latest(_: Readiness) -> tuple[int, dict[str, Any]] | None:
        nonlocal looks
        looks += 1
        if looks == 6:
            enough.set()
        return (200, {}) if looks % 2 else None

    monkeypatch.setattr(Readiness, "_latest", property(latest, lambda *_: None), raising=False)
    board = Board(Screen(), ["gateway"])
    readiness = Readiness(f"http://127.0.0.1:{free_port()}", board, worker=False, every_s=0.001)
    readiness.start()
    polled = enough.wait(30)
    readiness.close()
    assert polled
