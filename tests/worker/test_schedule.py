"""Nights by the clock."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from config.settings import Settings
from worker.app import make_worker
from worker.schedule import request_night


class Gateway(BaseHTTPRequestHandler):
    """Answers with the status that the test asks for."""

    status = 202
    asked: list[tuple[str, str | None, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, self.headers.get("authorization"), body))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(json.dumps({"id": "n1", "state": "queued"}).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def gateway() -> Iterator[tuple[str, type[Gateway]]]:
    handler = type("Handler", (Gateway,), {"asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def settings(**changes: Any) -> Settings:
    return Settings(_env_file=None, **changes)


def test_the_gateway_is_asked_with_the_key(gateway: tuple[str, type[Gateway]]) -> None:
    url, handler = gateway
    assert request_night(settings(gateway_url=url, api_key="secret"))
    assert handler.asked == [("/v1/consolidations", "Bearer secret", {"trigger": "schedule"})]


@pytest.mark.parametrize(
    ("status", "said"), [(409, "under way already"), (503, "answered 503"), (401, "answered 401")]
)
def test_a_refusal_is_logged(
    gateway: tuple[str, type[Gateway]], caplog: pytest.LogCaptureFixture, status: int, said: str
) -> None:
    url, handler = gateway
    handler.status = status
    caplog.set_level("INFO")
    assert not request_night(settings(gateway_url=url))
    assert said in caplog.text


def test_a_gateway_that_is_down_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert not request_night(settings(gateway_url="http://127.0.0.1:9"))
    assert "does not answer" in caplog.text


def test_never_is_no_schedule(tmp_path: Any) -> None:
    assert not make_worker(settings(data_dir=tmp_path, night_cron="never")).conf.beat_schedule


def test_cron_fields_become_the_schedule(tmp_path: Any) -> None:
    app = make_worker(settings(data_dir=tmp_path, night_cron="30 3 * * 1"))
    found = app.conf.beat_schedule["night"]["schedule"]
    assert (found.minute, found.hour, found.day_of_week) == ({30}, {3}, {1})
    assert app.conf.beat_schedule_filename.startswith(str(tmp_path))


def test_redis_gives_a_night_time_before_it_is_delivered_again(tmp_path: Any) -> None:
    app = make_worker(settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:9/0"))
    assert app.conf.broker_transport_options["visibility_timeout"] >= 3600
