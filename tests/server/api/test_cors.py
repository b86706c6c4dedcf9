"""Browsers of other origins may read every answer, and no other origin may."""

import pytest

from server.api.cors import cors_options
from tests.server.api.conftest import CHAT, Parts, Serve, Served

ORIGIN = "https://app.example"
ALLOWED = f"--allowed-origins '[\"{ORIGIN}\"]'"


async def answers(served: Served, origin: str) -> list[tuple[str, str | None]]:
    """Ask routes of every layer; return what was asked and the origin that may read the answer."""
    asked = [
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/v1/memory/stats"),
        ("GET", "/v1/models"),
        ("GET", "/v1/nothing-here"),
        ("DELETE", "/v1/priors"),
        ("GET", "/v1/priors/v1"),
        ("POST", CHAT),
        ("POST", "/v1/messages"),
    ]
    found = []
    for method, path in asked:
        answer = await served.http.request(
            method, path, json={"latent": {"k": 0}}, headers={"origin": origin}
        )
        found.append(
            (f"{method} {path} {answer.status_code}", answer.headers.get("access-control-allow-origin"))
        )
    return found


async def test_an_allowed_origin_reads_answers_and_errors_of_every_layer(serve: Serve) -> None:
    served = await serve(vllm_args=ALLOWED)
    assert {origin for _, origin in await answers(served, ORIGIN)} == {ORIGIN}
    assert {origin for _, origin in await answers(served, "https://evil.example")} == {None}


async def test_refusals_before_any_route_can_be_read_too(serve: Serve) -> None:
    served = await serve(Parts(broken=RuntimeError("no such model")), vllm_args=ALLOWED, api_key="s3cret")
    asked = await answers(served, ORIGIN)
    assert any(said.endswith("401") for said, _ in asked)
    assert {origin for _, origin in asked} == {ORIGIN}
    served.http.headers["authorization"] = "Bearer s3cret"
    asked = await answers(served, ORIGIN)
    assert any(said.endswith("503") for said, _ in asked)
    assert {origin for _, origin in asked} == {ORIGIN}


async def test_unforeseen_error_can_be_read(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = await serve(vllm_args=ALLOWED)

    def broken() -> None:
        raise RuntimeError

    monkeypatch.setattr(served.gateway.metrics, "summary", broken)
    answer = await served.http.get("/v1/memory/stats", headers={"origin": ORIGIN})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, ORIGIN)


async def test_a_script_may_read_what_ran_and_the_request_id(serve: Serve) -> None:
    served = await serve(vllm_args=ALLOWED)
    body = {"messages": [{"role": "user", "content": "sum two"}], "latent": {"effort": "high"}}
    answer = await served.http.post(CHAT, json=body, headers={"origin": ORIGIN})
    exposed = set(answer.headers["access-control-expose-headers"].split(", "))
    ours = {name for name in answer.headers if name.startswith("x-")}
    assert {"x-latent-reward-after", "x-request-id"} <= ours
    assert ours <= exposed


async def test_preflight_needs_no_key_and_other_options_do(serve: Serve) -> None:
    served = await serve(vllm_args=ALLOWED, api_key="s3cret")
    wanted = {"origin": ORIGIN, "access-control-request-method": "POST"}
    wanted |= {"access-control-request-headers": "authorization, content-type"}
    for path in (CHAT, "/v1/priors"):
        answer = await served.http.options(path, headers=wanted)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in answer.headers["access-control-allow-headers"]
        assert (await served.http.options(path, headers={"origin": ORIGIN})).status_code == 401


async def test_no_origin_is_allowed_by_default(served: Served) -> None:
    assert {origin for _, origin in await answers(served, ORIGIN)} == {None}


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ("--dtype float32 --allowed-origins '[\"*\"]' --seed 3", ["*"]),
        ('--allowed_origins=["https://a","https://b"]'.replace('"', '\\"'), ["https://a", "https://b"]),
        ("--allowed-origins '[]'", None),
        ("--allowed-origins https://a", None),  # vLLM asks for JSON, and does not start
        ("--allowed-origins", None),
        ('--dtype "float32', None),
        ("", None),
    ],
)
def test_origins_are_read_as_vllm_reads_them(options: str, allowed: list[str] | None) -> None:
    read = cors_options(options)
    assert (read["allow_origins"] if read else None) == allowed


def test_credentials_methods_and_headers_are_vllms_too() -> None:
    read = cors_options(f"{ALLOWED} --allow-credentials --allowed-methods '[\"GET\"]' --allowed-headers '[]'")
    assert read is not None
    assert (read["allow_credentials"], read["allow_methods"], read["allow_headers"]) == (True, ["GET"], [])
    read = cors_options(ALLOWED)
    assert read is not None
    assert (read["allow_credentials"], read["allow_methods"], read["allow_headers"]) == (False, ["*"], ["*"])
