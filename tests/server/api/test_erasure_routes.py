"""Forgetting one request, whatever became of it, and what waits to be explored."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from memory.episode import prompt_digest
from tests.server.api.conftest import Serve, Served
from tests.server.api.test_feedback_routes import episodes, say
from tests.tables import row

TRACES = "/v1/latent/traces"
SECRET = "sum of what nobody may know"


def holds(folder: Path, text: str) -> bool:
    """Return whether a file of the folder holds a text."""
    return any(text.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def forgotten(served: Served, name: str) -> tuple[int, dict[str, Any]]:
    answer = await served.http.delete(f"{TRACES}/{name}")
    return answer.status_code, answer.json()


async def test_a_request_that_left_no_episode_is_forgotten_in_traces_and_in_the_queue(
    served: Served, tmp_path: Path
) -> None:
    explorer, traces = served.gateway.steering.explorer, served.gateway.traces
    with explorer.client():  # while somebody waits, nothing is explored
        answer = await served.chat(SECRET, latent={"explore": True})
        other = await served.chat("sum of other things", latent={"explore": True})
        assert await traces.drain()
        assert explorer.waiting == 2
        assert holds(tmp_path, SECRET)
        code, body = await forgotten(served, answer.json()["id"])
        assert (code, body["deleted"], body["priors"]) == (200, 0, [])
        assert explorer.waiting == 1
    await explorer.drain()
    assert ["other things" in one.prompt_text for one in await episodes(served)] == [True]
    found = (await served.http.get(f"{TRACES}/{answer.headers['x-latent-trace']}")).json()
    assert found["why_not_remembered"] == "it was forgotten"
    listed = (await served.http.get(TRACES)).json()["data"]
    assert {one["question"] for one in listed} == {None, "sum of other things"}
    assert not holds(tmp_path, SECRET)
    assert (await forgotten(served, other.json()["id"]))[1]["deleted"] == 1


@pytest.mark.parametrize("by", ["answer", "trace", "feedback"])
async def test_what_a_request_left_is_forgotten_by_each_id_that_its_client_holds(
    served: Served, by: str
) -> None:
    answer = await served.chat(SECRET, latent={"effort": "high"})
    again = await served.chat(SECRET)
    [episode] = await episodes(served)
    name = answer.headers["x-latent-trace"]
    told = (await say(served, name, "comment", "wie schade")).json()["feedback_id"]
    named = {"answer": answer.json()["id"], "trace": name, "feedback": told}[by]
    code, body = await forgotten(served, named)
    assert (code, body["deleted"]) == (200, 1)
    assert await episodes(served) == []
    listed = (await served.http.get(TRACES)).json()["data"]
    assert [one["question"] for one in listed] == [None, None]
    assert (await served.http.get(f"{TRACES}/{name}")).json()["feedback"] == []
    assert (await say(served, again.json()["id"], "rating", True)).status_code == 404
    assert (await served.http.get(f"/v1/memory/episodes/{episode.id}")).status_code == 404


@pytest.mark.parametrize("kept", [{"memory_text": "off"}, {"memory_redact": "nobody"}])
async def test_a_request_is_forgotten_as_well_where_its_text_was_not_to_be_kept(
    serve: Serve, kept: dict[str, Any]
) -> None:
    served = await serve(**kept)
    explorer = served.gateway.steering.explorer
    with explorer.client():
        waiting = await served.chat(SECRET, latent={"explore": True})
        assert explorer.waiting == 1
        assert (await forgotten(served, waiting.json()["id"]))[0] == 200
        assert explorer.waiting == 0
    await served.chat(SECRET, latent={"effort": "high"})
    again = await served.chat(SECRET)
    assert len(await episodes(served)) == 1
    assert (await forgotten(served, again.json()["id"]))[1]["deleted"] == 1
    assert await episodes(served) == []


async def test_an_episode_is_found_by_its_request_also_when_the_trace_is_gone(serve: Serve) -> None:
    served = await serve(trace_limit=1)
    answer = await served.chat(SECRET, latent={"effort": "high"})
    assert len(await episodes(served)) == 1
    await served.chat("sum of other things")
    assert await served.gateway.traces.drain()
    assert (await served.http.get(f"{TRACES}/{answer.headers['x-latent-trace']}")).status_code == 404
    assert (await forgotten(served, answer.json()["id"]))[1]["deleted"] == 1
    assert await episodes(served) == []
    for unknown in (answer.json()["id"], str(uuid4()), "cmpl-of-mine"):
        code, body = await forgotten(served, unknown)
        assert (code, body["error"]["param"]) == (404, "trace_id")


async def test_priors_that_learned_from_an_episode_that_was_evicted_are_told(served: Served) -> None:
    answer = await served.chat(SECRET, latent={"effort": "high"})
    [episode] = await episodes(served)
    made = row(served.engine.neutral_latent(), np.eye(1, served.engine.space.hidden_size))
    learned = {"0": [prompt_digest(episode.prompt_token_ids)]}
    version = served.gateway.registry.publish([made], {"learned": learned, "labels": [], "trainings": []})
    await asyncio.to_thread(served.gateway.store.delete, [episode.id])
    _, body = await forgotten(served, answer.json()["id"])
    assert (body["deleted"], [one["version"] for one in body["priors"]]) == (0, [version])


async def test_feedback_on_a_request_that_was_not_to_be_kept_is_forgotten(
    served: Served, tmp_path: Path
) -> None:
    answer = await served.chat(SECRET, latent={"store": False})
    await say(served, answer.json()["id"], "comment", "my address is such")
    assert holds(tmp_path, "my address")
    assert (await forgotten(served, answer.json()["id"]))[0] == 200
    assert not holds(tmp_path, "my address")


@pytest.mark.parametrize("what", ["one", "filter", "all"])
async def test_whatever_forgets_an_episode_ends_the_exploration_that_would_bring_it_back(
    served: Served, what: str
) -> None:
    await served.chat(SECRET, latent={"effort": "high"})
    [episode] = await episodes(served)
    explorer = served.gateway.steering.explorer
    with explorer.client():
        await served.chat(SECRET, latent={"explore": True})
        path = {
            "one": f"/v1/memory/episodes/{episode.id}",
            "filter": "/v1/memory/episodes?effort=high",
            "all": "/v1/memory/episodes?all=true",
        }[what]
        assert (await served.http.delete(path)).json()["deleted"] == 1
    await explorer.drain()
    assert await episodes(served) == []
