"""The clients of `bench serve`, against a fake gateway that streams."""

import asyncio

import pytest

from bench.serve.arms import body
from bench.serve.load import Round, client_of, load
from cli.failure import CommandError
from tests.cli.fake_gateway import MODEL, FakeGateway


async def ask(url: str, questions: list[str], arm: str, concurrency: int) -> Round:
    async with client_of(url) as client:
        return await load(client, MODEL, questions, body(arm), concurrency=concurrency, max_tokens=7)


async def test_every_question_is_asked_once_as_its_arm_says(gateway: FakeGateway) -> None:
    asked = [f"question {n}" for n in range(9)]
    found = await ask(gateway.url, asked, "low", 4)
    assert sorted(sent["messages"][0]["content"] for sent in gateway.asked) == asked
    for sent in gateway.asked:
        assert sent["stream"] is True
        assert sent["ignore_eos"] is True
        assert sent["max_tokens"] == 7
        assert sent["latent"] == body("low")["latent"]
    assert found.modes == {"recall": 9}
    assert [reply.tokens for reply in found.replies] == [3] * 9  # what the server says, not pieces of text


async def test_plain_answers_say_why(gateway: FakeGateway) -> None:
    assert (await ask(gateway.url, ["one"], "none", 1)).modes == {"plain: effort-none": 1}


async def test_times_are_in_order(gateway: FakeGateway) -> None:
    found = await ask(gateway.url, ["one", "two"], "none", 1)
    for reply in found.replies:
        assert 0 < reply.first_s <= reply.last_s <= found.seconds
    assert found.tokens_per_s == pytest.approx(6 / found.seconds)
    assert found.first_s > 0


async def test_more_clients_than_questions_is_no_fault(gateway: FakeGateway) -> None:
    assert len((await ask(gateway.url, ["one"], "none", 16)).replies) == 1


async def test_refused_answer_ends_the_round(gateway: FakeGateway) -> None:
    gateway.refusal = "too long"
    with pytest.raises(CommandError, match="too long"):
        await ask(gateway.url, ["one", "two", "three"], "low", 2)


async def test_answer_that_breaks_off_is_no_answer(gateway: FakeGateway) -> None:
    gateway.broken = True
    with pytest.raises(CommandError):
        await asyncio.wait_for(ask(gateway.url, ["one"], "none", 1), 30)
