"""What a line of the gateway's log looks like."""

import logging
from collections.abc import Iterator

import pytest

from server.log import configure_logging, current_request_id
from server.steering.outcome import Outcome
from server.steering.request import SteeringCall, current_call
from tests.server.steering.fakes import options


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "server", "uvicorn", "uvicorn.access", "memory")]
    before = [(logger, logger.handlers[:], logger.filters[:], logger.level) for logger in loggers]
    yield
    for logger, handlers, filters, level in before:
        logger.handlers, logger.filters = handlers, filters
        logger.setLevel(level)


def test_record_tells_request_and_prior_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    call = SteeringCall(options("low"), outcome=Outcome("prior", "prior-covers", prior_version="v3"))
    tokens = current_request_id.set("abc"), current_call.set(call)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logging.getLogger("server.x").exception("broken")
    current_request_id.reset(tokens[0])
    current_call.reset(tokens[1])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "request=abc prior=v3" in lines[0]
    assert "second" in lines[0]


def test_root_level_of_another_library_silences_nothing_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("server.x").info("still here")
    assert "still here" in capsys.readouterr().err


def test_probes_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    access = logging.getLogger("uvicorn.access")
    for path in ("/readyz", "/v1/models"):
        access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", path, "1.1", 200)
    out = capsys.readouterr().err
    assert "/v1/models" in out
    assert "/readyz" not in out
