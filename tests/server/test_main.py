"""`python -m server`: what its exit status says."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import server.__main__ as entry
from tests.cli.ports import free_port

ROOT = Path(__file__).parents[2]


def ran(monkeypatch: pytest.MonkeyPatch, life: Callable[[Any, Callable[[], None]], None]) -> int:
    """Run main with `life` in place of serving: it gets uvicorn's server and what ends the process."""
    stops: list[Callable[[], None]] = []

    def create_app(settings: object, *, stop: Callable[[], None]) -> Callable[..., None]:
        stops.append(stop)
        return lambda *_: None

    def run(server: Any) -> None:
        server.started = True
        life(server, stops[0])

    monkeypatch.setattr(entry, "create_app", create_app)
    monkeypatch.setattr(entry, "configure_logging", lambda level: None)
    monkeypatch.setattr(entry._Server, "run", run)
    return entry.main()


@pytest.mark.parametrize("times", [1, 2, 3])
def test_dead_engine_is_a_failure_however_many_requests_tell(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    def dies(server: Any, stop: Callable[[], None]) -> None:
        for _ in range(times):
            stop()

    assert ran(monkeypatch, dies) == 1


def test_end_that_was_asked_for_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(server: Any, stop: Callable[[], None]) -> None:
        server.should_exit = True
        stop()  # what is still starting says so when it is cut short

    assert ran(monkeypatch, ends) == 0


def test_a_start_says_which_variables_it_ignores(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LATENTEVOLVE_API_KYE", "secret")
    assert ran(monkeypatch, lambda server, stop: None) == 0
    assert (
        "LATENTEVOLVE_API_KYE is no setting and is ignored: did you mean LATENTEVOLVE_API_KEY?" in caplog.text
    )
    assert "secret" not in caplog.text


STREAMING = """
from types import SimpleNamespace
import server.__main__ as entry
from memory.night import NightRecord
from server.api.consolidations import stream
from starlette.applications import Starlette
from starlette.routing import Route

night = NightRecord("n", "space", "api")

async def get(_):
    return night

async def events(request):
    return stream(SimpleNamespace(nights=SimpleNamespace(get=get)), night)

entry.create_app = lambda settings, stop: Starlette(routes=[Route("/", events)])
raise SystemExit(entry.main())
"""


def test_the_events_of_a_night_end_in_order_with_the_server(tmp_path: Path) -> None:
    """One that is cut off by force would be an error to its client."""
    port = free_port()
    environment = os.environ | {"LATENTEVOLVE_PORT": str(port), "LATENTEVOLVE_DATA_DIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", STREAMING], cwd=ROOT, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            deadline = time.monotonic() + 60
            while True:
                try:
                    with http.stream("GET", "/") as answer:
                        lines = answer.iter_lines()
                        assert any(line.startswith("data: ") for line in lines)
                        process.send_signal(signal.SIGTERM)
                        assert [line for line in lines if line.startswith("data: ")] == []
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
