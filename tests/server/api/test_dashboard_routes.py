"""The dashboard's files, and what it asks that nothing else does."""

import hashlib
import re

import pytest

from server.api.dashboard import FOLDER
from tests.server.api.conftest import Serve, Served

VENDOR = FOLDER / "vendor"
KEY = {"authorization": "Bearer secret"}


async def test_the_page_and_its_files_need_no_key_and_may_load_nothing_else(serve: Serve) -> None:
    served = await serve(api_key="secret")
    page = await served.http.get("/dashboard")
    assert page.status_code == 200
    named = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(named) > 5
    for name in named:
        answer = await served.http.get(f"/{name}")
        assert answer.status_code == 200, name
        policy = dict(
            part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'self'"
        assert "script-src" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in page.text
    assert (await served.http.head("/dashboard")).status_code == 200
    assert (await served.http.get("/v1/latent/traces")).status_code == 401
    assert (await served.http.get("/v1/latent/traces", headers=KEY)).status_code == 200


async def test_only_its_own_files_are_served(served: Served) -> None:
    for name in ("nothing.js", "../app.py", "..%2fapp.py", "vendor", "vendor/../../app.py", "%00"):
        assert (await served.http.get(f"/dashboard/{name}")).status_code == 404, name
    above = await served.http.get("/dashboard/")
    assert (above.status_code, above.headers["location"]) == (307, "../dashboard")


async def test_an_unchanged_file_is_not_sent_again(served: Served) -> None:
    first = await served.http.get("/dashboard/app.js")
    again = await served.http.get("/dashboard/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_it_can_be_turned_off(serve: Serve) -> None:
    served = await serve(dashboard=False)
    for path in ("/dashboard", "/dashboard/app.js"):
        assert (await served.http.get(path)).status_code == 404


def test_libraries_are_the_released_files() -> None:
    table = re.findall(r"^\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|$", (VENDOR / "README.md").read_text(), re.M)
    said = dict(table)
    found = {path.name for path in VENDOR.glob("*.*") if path.suffix in (".js", ".css")}
    assert set(said) == found
    for name, digest in said.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name


def test_nothing_of_another_host_is_named() -> None:
    for path in FOLDER.glob("*.*"):
        hosts = set(re.findall(r"\w+://([^/\s\"'`]+)", path.read_text()))
        assert hosts <= {"www.w3.org"}, f"{path.name} names {hosts}"


async def test_recent_requests_are_listed_page_by_page_with_their_texts(served: Served) -> None:
    for number in range(5):
        await served.chat(f"sum number {number}", latent={"effort": "medium" if number == 4 else "low"})
    await served.gateway.traces.drain()
    first = (await served.http.get("/v1/latent/traces", params={"limit": 3})).json()
    rest = (
        await served.http.get("/v1/latent/traces", params={"limit": 3, "cursor": first["next_cursor"]})
    ).json()
    assert (first["has_more"], rest["has_more"], rest["next_cursor"]) == (True, False, None)
    shown = first["data"] + rest["data"]
    assert [one["question"] for one in shown] == [f"sum number {number}" for number in (4, 3, 2, 1, 0)]
    assert all(one["answer"] for one in shown)
    assert shown[0]["effort"] == "medium"
    assert shown[0]["search_tokens"] > 0
    said = {"inference_id": shown[0]["id"], "metric_name": "rating", "value": False}
    for value, rating in ((False, 0.0), (True, 1.0)):
        await served.http.post("/v1/feedback", json=said | {"value": value})
        page = (await served.http.get("/v1/latent/traces", params={"limit": 1})).json()
        assert page["data"][0]["rating"] == rating, "the last word counts"


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "cursor=x", "cursor=-1"])
async def test_a_list_of_traces_that_cannot_be_is_refused_by_name(served: Served, query: str) -> None:
    answer = await served.http.get(f"/v1/latent/traces?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


@pytest.mark.parametrize("how", ["text off", "redacted", "not stored", "forgotten"])
async def test_texts_that_are_not_kept_are_not_listed(serve: Serve, how: str) -> None:
    settings = {"text off": {"memory_text": "off"}, "redacted": {"memory_redact": "secret"}}
    served = await serve(**settings.get(how, {}))
    await served.chat("sum secret", latent={"store": how != "not stored"})
    if how == "forgotten":
        await served.http.delete("/v1/memory/episodes?all=true")
    await served.gateway.traces.drain()
    (one,) = (await served.http.get("/v1/latent/traces")).json()["data"]
    assert (one["question"], one["answer"]) == (None, None)


async def test_the_timeline_counts_what_was_asked(served: Served) -> None:
    for effort in ("low", "medium", "medium"):
        await served.chat("sum two and two", latent={"effort": effort})
    await served.gateway.traces.drain()
    found = (await served.http.get("/v1/latent/timeline?window=hour")).json()
    total = found["total"]
    assert total["by_effort"] == {"low": 1, "medium": 2}
    assert total["requests"] == sum(step["requests"] for step in found["steps"]) == 3
    assert total["searched"] == total["searches"] == 2
    assert 0 <= total["reward_before"] <= total["reward_after"] <= 1
    assert total["tokens_saved"] == total["learned"] * total["tokens_per_search"]
    assert (await served.http.get("/v1/latent/timeline?window=year")).status_code == 400
