"""`python -m server`: what its exit status says."""

from collections.abc import Callable
from typing import Any

import pytest

import server.__main__ as entry


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
