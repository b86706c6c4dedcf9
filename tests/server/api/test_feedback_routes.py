"""POST /v1/feedback: from the client's id to the trace, and what memory makes of what people say."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import numpy as np
import pytest

import server.feedback
from memory.episode import Episode, StoreUnavailableError, prompt_digest
from server.steering.people import Graded
from tests.server.api.conftest import Serve, Served
from tests.tables import row

FEEDBACK, TRACES = "/v1/feedback", "/v1/latent/traces"


async def say(served: Served, inference_id: str, metric: str, value: Any, **fields: Any) -> httpx.Response:
    body = {"inference_id": inference_id, "metric_name": metric, "value": value} | fields
    return await served.http.post(FEEDBACK, json=body)


async def episodes(served: Served) -> list[Episode]:
    await served.gateway.remember.drain()
    return await asyncio.to_thread(lambda: list(served.gateway.store.scroll()))


async def trace(served: Served, answer: httpx.Response) -> dict[str, Any]:
    found = await served.http.get(f"{TRACES}/{answer.headers['x-latent-trace']}")
    return found.json()


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["param"]


async def test_the_id_of_an_answer_and_of_its_trace_name_the_same(served: Served) -> None:
    answer = await served.chat()
    name = answer.headers["x-latent-trace"]
    assert answer.json()["id"] == f"chatcmpl-{name}"
    for inference_id in (name, f"chatcmpl-{name}", f"resp_{name}"):
        said = await say(served, inference_id, "comment", "fine", tags={"by": inference_id})
        assert said.status_code == 200, said.text
    kept = (await trace(served, answer))["feedback"]
    assert [one["tags"]["by"] for one in kept] == [name, f"chatcmpl-{name}", f"resp_{name}"]
    assert {(one["metric_name"], one["value"]) for one in kept} == {("comment", "fine")}
    assert await episodes(served) == []


@pytest.mark.parametrize("written", [False, True])
async def test_an_answer_that_is_called_good_is_remembered_as_it_was_given(
    served: Served, written: bool
) -> None:
    answer = await served.chat()
    if written:
        assert await served.gateway.traces.drain()
    assert (await trace(served, answer))["remembered"] == "no"
    assert (await say(served, answer.json()["id"], "rating", True)).status_code == 200
    [episode] = await episodes(served)
    assert (episode.answer_text, episode.reward) == (answer.json()["text"], 1.0)
    assert episode.signals == {"feedback": 1.0}
    assert not episode.latent_earned
    assert "sum two and two" in episode.prompt_text
    found = await trace(served, answer)
    assert (found["remembered"], found["episode_id"]) == ("stored", episode.id)
    assert "sum two and two" not in str(found)
    await served.chat(latent={"effort": "high"})
    [again] = await episodes(served)
    assert again.id == episode.id
    assert again.key == pytest.approx(episode.key, abs=1e-5)


async def test_what_was_found_by_searching_is_retracted_by_a_bad_rating_and_by_a_good_one_again_kept(
    served: Served,
) -> None:
    answer = await served.chat(latent={"effort": "high"})
    [before] = await episodes(served)
    assert before.latent_earned
    assert (await served.chat("sum two and three")).headers["x-latent-mode"] == "recall"
    assert (await say(served, answer.json()["id"], "rating", 0.2)).status_code == 200
    [bad] = await episodes(served)
    assert bad.retracted
    assert (bad.reward, bad.signals) == (0.2, before.signals | {"feedback": 0.2})
    assert (await served.chat("sum two and three")).headers["x-latent-reason"] == "nothing-recalled"
    assert (await say(served, answer.json()["id"], "rating", 0.9)).status_code == 200
    [good] = await episodes(served)
    assert not good.retracted
    assert (good.reward, good.answer_text, good.seen) == (0.9, before.answer_text, 1)


async def test_a_demonstration_takes_the_place_of_what_was_remembered(served: Served) -> None:
    answer = await served.chat(latent={"effort": "high"})
    [before] = await episodes(served)
    assert (await say(served, answer.json()["id"], "demonstration", "It is 4.")).status_code == 200
    [episode] = await episodes(served)
    assert (episode.id, episode.answer_text, episode.reward) == (before.id, "It is 4.", 1.0)
    assert episode.answer_token_ids == served.engine.answer_tokens("It is 4.")
    assert not episode.latent_earned


async def test_an_answer_that_was_cut_off_is_no_example_but_what_it_should_have_been_is(
    served: Served,
) -> None:
    answer = await served.chat(max_tokens=1)
    assert (await say(served, answer.json()["id"], "rating", True)).status_code == 200
    assert await episodes(served) == []
    assert (await say(served, answer.json()["id"], "demonstration", "It is 4.")).status_code == 200
    [episode] = await episodes(served)
    assert episode.max_tokens == len("It is 4.") + 1


async def test_the_same_feedback_sent_again_changes_nothing(served: Served) -> None:
    answer = await served.chat()
    said = {"feedback_id": str(uuid4()), "tags": {"by": "me"}}
    for rating in (0.25, 1.0):
        other = await say(served, answer.json()["id"], "rating", rating)
        assert other.json()["feedback_id"] != said["feedback_id"]
        again = await say(served, answer.json()["id"], "rating", 0.25, **said)
        assert (again.status_code, again.json()) == (200, {"feedback_id": said["feedback_id"]})
    [episode] = await episodes(served)
    assert episode.reward == 1.0
    assert len((await trace(served, answer))["feedback"]) == 3
    for changed in (
        await say(served, answer.json()["id"], "rating", 0.5, **said),
        await say(served, answer.json()["id"], "rating", 0.25, feedback_id=said["feedback_id"]),
        await say(served, (await served.chat("another")).json()["id"], "rating", 0.25, **said),
    ):
        assert refusal(changed) == (409, "feedback_id")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"metric_name": "thumbs"}, "metric_name"),
        ({"metric_name": None}, "metric_name"),
        ({"value": 1.01}, "value"),
        ({"value": -1}, "value"),
        ({"value": "good"}, "value"),
        ({"value": None}, "value"),
        ({"value": [1]}, "value"),
        ({"metric_name": "comment", "value": 1}, "value"),
        ({"metric_name": "comment", "value": " "}, "value"),
        ({"metric_name": "comment", "value": "a\0b"}, "value"),
        ({"metric_name": "demonstration", "value": True}, "value"),
        ({"metric_name": "demonstration", "value": "word " * 5000}, "value"),
        ({"inference_id": ""}, "inference_id"),
        ({"feedback_id": "mine"}, "feedback_id"),
        ({"tags": {str(number): "" for number in range(33)}}, "tags"),
        ({"episode_id": "x"}, "episode_id"),
    ],
)
async def test_what_is_wrong_is_named(served: Served, fields: dict[str, Any], param: str) -> None:
    answer = await served.chat()
    body = {"inference_id": answer.json()["id"], "metric_name": "rating", "value": True} | fields
    assert refusal(await served.http.post(FEEDBACK, json=body)) == (400, param)
    assert await episodes(served) == []


@pytest.mark.parametrize("wrong", [r'"value":"\ud800"', r'"value":"fine","tags":{"a":"\udfff"}'])
async def test_text_that_is_none_is_refused(served: Served, wrong: str) -> None:
    answer = await served.chat()
    body = f'{{"inference_id":"{answer.json()["id"]}","metric_name":"comment",{wrong}}}'
    refused = await served.http.post(FEEDBACK, content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 400


async def test_what_there_is_no_trace_of_is_not_found(serve: Serve) -> None:
    served = await serve(trace_limit=1)
    plain = await served.chat(latent={"effort": "none"})
    unknown = await say(served, plain.json()["id"], "rating", True)
    assert refusal(unknown) == (404, "inference_id")
    assert "effort none" in unknown.json()["error"]["message"]
    assert refusal(await say(served, str(uuid4()), "comment", "fine")) == (404, "inference_id")
    old = await served.chat()
    assert (await say(served, old.json()["id"], "comment", "fine")).status_code == 200
    assert await served.gateway.traces.drain()
    await served.chat("another")
    assert await served.gateway.traces.drain()
    gone = await say(served, old.json()["id"], "rating", True)
    assert refusal(gone) == (404, "inference_id")
    assert "after 1 later" in gone.json()["error"]["message"]


async def test_of_a_request_that_is_not_to_be_remembered_only_comments_are_taken(served: Served) -> None:
    answer = await served.chat(latent={"store": False})
    for metric, value in (("rating", True), ("demonstration", "4")):
        assert refusal(await say(served, answer.json()["id"], metric, value)) == (404, "inference_id")
    assert (await say(served, answer.json()["id"], "comment", "fine")).status_code == 200
    assert await episodes(served) == []


async def test_where_texts_are_off_ratings_are_of_what_is_remembered_and_no_text_is_written(
    serve: Serve, tmp_path: Path
) -> None:
    served = await serve(memory_text="off")
    searched = await served.chat(latent={"effort": "high"})
    await episodes(served)
    plain = await served.chat("sum six and two")
    assert (await say(served, searched.json()["id"], "rating", False)).status_code == 200
    [episode] = await episodes(served)
    assert episode.retracted
    assert (await say(served, searched.json()["id"], "comment", "by six and two")).status_code == 200
    assert [one["value"] for one in (await trace(served, searched))["feedback"]] == [False, ""]
    for metric, value in (("rating", True), ("demonstration", "six and two")):
        refused = await say(served, plain.json()["id"], metric, value)
        assert refusal(refused) == (404, "inference_id")
        assert "LATENTEVOLVE_MEMORY_TEXT" in refused.json()["error"]["message"]
    await served.gateway.traces.drain()
    files = await asyncio.to_thread(
        lambda: [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    )
    assert files
    assert not any(b"six and two" in content for content in files)


async def test_what_a_pattern_matches_is_not_kept_for_feedback_either(serve: Serve, tmp_path: Path) -> None:
    served = await serve(memory_redact="secret [a-z]+")
    answer = await served.chat("sum secret seven")
    assert refusal(await say(served, answer.json()["id"], "rating", True)) == (404, "inference_id")
    assert (await say(served, answer.json()["id"], "comment", "my secret seven!")).status_code == 200
    assert [one["value"] for one in (await trace(served, answer))["feedback"]] == ["my [redacted]!"]
    await served.gateway.traces.drain()
    files = await asyncio.to_thread(
        lambda: [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    )
    assert not any(b"secret seven" in content for content in files)


async def test_an_answer_that_a_pattern_matches_cannot_be_rated_but_shown_what_it_should_have_been(
    serve: Serve,
) -> None:
    served = await serve(memory_redact="(?s)^(?!user).+")  # prompts begin so, answers do not
    with served.gateway.state.write():  # so that nobody else writes
        answer = await served.chat()
        assert refusal(await say(served, answer.json()["id"], "rating", False)) == (404, "inference_id")
    await served.gateway.traces.drain()
    assert refusal(await say(served, answer.json()["id"], "rating", False)) == (404, "inference_id")
    assert (await say(served, answer.json()["id"], "demonstration", "4")).status_code == 200
    [episode] = await episodes(served)
    assert (episode.answer_text, episode.answer_token_ids) == ("[redacted]", ())


async def test_what_exploring_found_is_not_what_the_client_got(serve: Serve) -> None:
    served = await serve(memory_text="off")
    answer = await served.chat(latent={"explore": True})
    await served.gateway.steering.explorer.drain()
    assert len(await episodes(served)) == 1
    assert refusal(await say(served, answer.json()["id"], "rating", False)) == (404, "inference_id")


async def test_forgetting_everything_forgets_what_was_asked_and_not_remembered(served: Served) -> None:
    answer = await served.chat()
    assert (await say(served, answer.json()["id"], "comment", "fine")).status_code == 200
    await served.http.delete("/v1/memory/episodes", params={"all": True})
    assert (await trace(served, answer))["feedback"] == []
    assert refusal(await say(served, answer.json()["id"], "rating", True)) == (404, "inference_id")


@pytest.mark.parametrize("everything", [False, True])
async def test_what_was_forgotten_does_not_come_back_by_feedback(served: Served, everything: bool) -> None:
    answer = await served.chat()
    assert (await say(served, answer.json()["id"], "rating", True)).status_code == 200
    [episode] = await episodes(served)
    if everything:
        await served.http.delete("/v1/memory/episodes", params={"all": True})
    else:
        await served.http.delete(f"/v1/memory/episodes/{episode.id}")
    assert (await trace(served, answer))["feedback"] == []
    assert refusal(await say(served, answer.json()["id"], "rating", True)) == (404, "inference_id")
    assert await episodes(served) == []


async def test_feedback_is_counted(served: Served) -> None:
    answer = await served.chat()
    said = {"feedback_id": str(uuid4())}
    for _ in range(2):
        await say(served, answer.json()["id"], "rating", True, **said)
    await asyncio.gather(
        *(say(served, answer.json()["id"], "comment", "fine", feedback_id=str(UUID(int=1))) for _ in range(3))
    )
    assert (await served.http.get("/v1/memory/stats")).json()["feedback"] == {"rating": 1, "comment": 1}
    metrics = (await served.http.get("/metrics")).text
    assert 'latentevolve_feedback_total{metric_name="rating"} 1.0' in metrics


async def test_while_memory_is_away_nothing_is_kept_and_the_same_can_be_sent_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, said = await served.chat(), {"feedback_id": str(uuid4())}

    def away(_: object) -> None:
        raise StoreUnavailableError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(server.feedback, "WRITTEN_S", 0.05)
        patch.setattr(served.gateway.store, "add", away)
        refused = await say(served, answer.json()["id"], "rating", True, **said)
        assert refused.status_code == 503
        assert "same id" in refused.json()["error"]["message"]
        assert (await trace(served, answer))["feedback"] == []
    assert (await say(served, answer.json()["id"], "rating", True, **said)).status_code == 200
    assert len(await episodes(served)) == len((await trace(served, answer))["feedback"]) == 1


async def test_a_clients_request_id_does_not_name_the_answer(served: Served) -> None:
    answer = await served.http.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "sum two and two"}]},
        headers={"x-request-id": "mine"},
    )
    assert answer.headers["x-request-id"] == "mine"
    assert answer.json()["named"] is None


async def test_what_people_say_counts_for_the_rows_that_were_measured_on_the_request(served: Served) -> None:
    gateway, engine = served.gateway, served.engine
    version = gateway.registry.publish(
        [row(engine.neutral_latent(), np.eye(1, engine.space.hidden_size))], {}
    )
    gateway.registry.activate(version)
    answer = await served.chat()
    name = answer.headers["x-latent-trace"]
    kept = await gateway.traces.exchange(name)
    assert kept is not None
    assert kept.asked is not None
    measured = f"{version}/0"
    await gateway.prior.observe(prompt_digest(kept.asked.token_ids), {measured: 1.0})
    graded = Graded(("4",) * 5, ("5",) * 5)
    await gateway.steering.people.measured(name, "default", {measured: graded})

    async def evidence() -> dict[str, Any]:
        stats = (await served.http.get("/v1/memory/stats")).json()
        found: dict[str, Any] = stats["prior"]["rows"][measured]
        return found

    assert ((await evidence())["n"], (await evidence())["mean"]) == (1, 1.0)
    assert (await say(served, name, "demonstration", "it is 5")).status_code == 200
    assert ((await evidence())["n"], (await evidence())["mean"]) == (1, -1.0)
    assert "5" not in str((await trace(served, answer)).get("explored"))
