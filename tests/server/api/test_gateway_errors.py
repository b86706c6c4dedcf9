"""Errors: one shape, a request id, and nothing from inside."""

import pytest

from memory.episode import StoreUnavailableError
from model.engine import EngineDeadError, PromptTooLongError
from tests.server.api.conftest import Serve, Served


async def test_unknown_error_hides_internals(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(served.gateway.tally, "summary", broken)
    answer = await served.http.get("/v1/memory/stats", headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "abc-1"
    error = answer.json()["error"]
    assert "abc-1" in error["message"]
    assert "secret" not in answer.text
    assert "RuntimeError" not in answer.text
    assert "secret of the inside" in caplog.text


async def test_unknown_route_has_one_shape(served: Served) -> None:
    answer = await served.http.get("/v1/nothing-here")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "NotFoundError"


async def test_error_inside_vllm_still_tells_what_ran(served: Served) -> None:
    answer = await served.chat(**{"break": "before"})
    assert answer.status_code == 500
    assert answer.headers["x-latent-mode"] == "plain"
    assert answer.headers["x-latent-reason"] == "failed"


@pytest.mark.parametrize("offered", ["with space", "x" * 129, "ümlaut".encode("latin-1"), ""])
async def test_request_id_that_could_break_a_log_is_replaced(served: Served, offered: str | bytes) -> None:
    answer = await served.http.get("/healthz", headers={"x-request-id": offered})
    assert len(answer.headers["x-request-id"]) == 32


async def test_store_that_is_away_is_a_503(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise StoreUnavailableError("no answer")

    monkeypatch.setattr(served.gateway.store, "stats", away)
    answer = await served.http.get("/v1/memory/stats")
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "ServiceUnavailableError"


@pytest.mark.parametrize(
    ("error", "status"), [(PromptTooLongError("too long"), 400), (EngineDeadError("gone"), 503)]
)
async def test_engine_error_in_vllms_app_has_our_shape(served: Served, error: Exception, status: int) -> None:
    async def refuse(*_: object) -> None:
        raise error

    served.inner.state.steer = refuse
    answer = await served.chat()
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing-here", 404),
        ("GET", "/v1/latent/traces/not-a-uuid", 404),
        ("GET", "/v1/latent/traces/00000000-0000-4000-8000-000000000000", 404),
        ("GET", "/v1/latent/traces/00000000-0000-4000-8000-000000000000?include=all", 400),
        ("GET", "/v1/memory/episodes/not-a-uuid", 404),
        ("GET", "/v1/memory/episodes/00000000-0000-4000-8000-000000000000", 404),
        ("GET", "/v1/priors/v1", 404),
        ("GET", "/v1/priors/..%2F..", 404),
        ("POST", "/v1/priors/v1/activate", 404),
        ("POST", "/v1/priors/latest/activate", 404),
        ("GET", "/v1/consolidations/not-a-uuid", 404),
        ("GET", "/v1/consolidations/00000000-0000-4000-8000-000000000000", 404),
    ],
)
async def test_unknown_and_malformed_names(served: Served, method: str, path: str, status: int) -> None:
    answer = await served.http.request(method, path)
    assert answer.status_code == status


async def test_key_is_asked_for_everywhere_but_at_probes(serve: Serve) -> None:
    served = await serve(api_key="s3cret")
    for path in ("/v1/models", "/v1/memory/stats", "/v1/priors", "/tokenize", "/v1/consolidations"):
        answer = await served.http.get(path)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["type"] == "AuthenticationError"
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await served.http.get(path)).status_code == 200, path
    assert (await served.chat()).status_code == 401


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
        ("Bearer s3cre", 401),
        ("Bearer", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
    ],
)
async def test_only_the_bearer_of_the_key_passes(serve: Serve, header: str, status: int) -> None:
    served = await serve(api_key="s3cret")
    answer = await served.http.get("/v1/models", headers={"authorization": header})
    assert answer.status_code == status
