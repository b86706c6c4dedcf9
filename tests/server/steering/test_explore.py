"""Answers sampled after the client has its own."""

import asyncio
import math
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.engine import EngineDeadError, in_background
from server.steering.explore import MOST_TRIES
from tests.scripted_engine import ScriptedEngine
from tests.server.steering.conftest import Day, MakeDay
from tests.server.steering.fakes import rendered


def once_wrong(prompt, latent, decoding) -> str:
    """Seven of eight samples agree, and the greedy answer is not among them."""
    if decoding.temperature == 0 or (decoding.seed or 0) % 8 == 0:
        return "no"
    return "yes"


async def test_vote_of_samples_is_remembered_and_nobody_waits(make_day: MakeDay) -> None:
    day = await make_day(ScriptedEngine(answer=once_wrong), rewards="consistency=1")
    outcome, trace = await day.ask(explore=True)
    assert (outcome.mode, outcome.reason, outcome.usage.generated_tokens) == ("plain", "memory-empty", 0)
    assert trace["remembered"] == "pending"
    assert day.store.episodes == []
    await day.steering.explorer.drain()
    assert await day.remember.drain()
    (episode,) = day.store.episodes
    assert (episode.answer_text, episode.latent_earned, episode.start_lift) == ("yes", False, None)
    settled = await day.traces.get(episode.trace_id)
    assert (settled["remembered"], settled["episode_id"]) == ("stored", episode.id)
    assert settled["explored"]["generated_tokens"] > 0


async def test_equal_prompts_share_an_episode_and_what_an_answer_is_held_to_parts_them(
    make_day: MakeDay,
) -> None:
    engine = ScriptedEngine(answer=once_wrong)
    day = await make_day(engine, rewards="consistency=1")
    prompt = rendered(engine, "apples How many?")
    chosen = replace(prompt, held_to='{"choice": ["yes", "no"]}')
    for asked in (prompt, chosen, rendered(engine, "pears How many?"), prompt, chosen):
        await day.ask(asked, explore=True)
    await day.steering.explorer.drain()
    assert await day.remember.drain()
    names = [episode.id for episode in day.store.episodes]
    assert (len(names), len(set(names))) == (5, 3)


async def test_explorations_and_their_tokens_are_counted(make_day: MakeDay, monkeypatch) -> None:
    day = await make_day(ScriptedEngine(answer=once_wrong), rewards="consistency=1")

    def count(result: str) -> float | None:
        return day.collectors.get_sample_value("latentevolve_explorations_total", {"result": result})

    _, trace = await day.ask(explore=True)
    await day.steering.explorer.drain()
    settled = await day.traces.get(trace["id"])
    spent = day.collectors.get_sample_value("latentevolve_explore_generated_tokens_total")
    assert (count("remembered"), spent) == (1, settled["explored"]["generated_tokens"])
    assert day.collectors.get_sample_value("latentevolve_search_generated_tokens_total") == 0

    picky = await make_day(ScriptedEngine(answer=once_wrong), rewards="consistency=1", remember_threshold=1)
    await picky.ask(explore=True)
    await picky.steering.explorer.drain()
    assert picky.collectors.get_sample_value("latentevolve_explorations_total", {"result": "discarded"}) == 1

    monkeypatch.setattr("server.steering.explore.MAX_WAITING", 0)
    await day.ask(explore=True)
    assert count("skipped") == 1


async def test_only_what_nobody_waits_for_is_in_the_background(day: Day) -> None:
    generate, background = day.engine.generate, []

    async def watched(prompts, decoding, **named: Any):
        background.append(in_background.get())
        return await generate(prompts, decoding, **named)

    day.engine.generate = watched
    await day.ask(explore=True)
    await day.steering.explorer.drain()
    await day.ask(effort="medium")
    assert background == [True, False]


async def test_what_would_be_served_has_half_the_votes_and_its_lift_is_measured(day: Day) -> None:
    version = await day.publish()
    asked = []
    generate = day.engine.generate

    async def watched(prompts, decoding, **named: Any):
        asked.extend(prompts)
        return await generate(prompts, decoding, **named)

    day.engine.generate = watched
    outcome, _ = await day.ask(explore=True)
    assert outcome.mode == "prior"
    await day.steering.explorer.drain()
    assert await day.remember.drain()
    (episode,) = day.store.episodes
    assert episode.start_lift > 0
    assert episode.prior_version == version
    steered = [prompt for prompt in asked if prompt.latent is not None]
    # Two greedy answers and eight rollouts, then four plain ones that are graded beside the row's.
    assert (len(asked), len(steered)) == (14, 5)


async def test_explorations_that_waited_keep_the_context_of_their_own_request(make_day: MakeDay) -> None:
    """Prefix caches are parted by a context variable; the task that starts a waiting one has its own."""
    whose: ContextVar[str] = ContextVar("whose")
    day = await make_day(explore_concurrency=1)
    found, all_asked = [], asyncio.Event()
    generate = day.engine.generate

    async def watched(prompts, decoding, **named: Any):
        await all_asked.wait()
        found.append((whose.get(), day.engine.decode(prompts[0].token_ids)))
        return await generate(prompts, decoding, **named)

    day.engine.generate = watched
    questions = ["apples How many?", "pears How many?", "plums How many?"]
    for question in questions:
        token = whose.set(question)
        await day.ask(question, explore=True)
        whose.reset(token)
    all_asked.set()
    await day.steering.explorer.drain()
    assert [name for name, _ in found] == questions
    assert all(name in prompt for name, prompt in found)


async def test_share_of_the_server_decides_for_requests_that_say_nothing(make_day: MakeDay) -> None:
    always = await make_day(explore_share=1.0)
    assert (await always.ask())[1]["remembered"] == "pending"
    assert (await always.ask(explore=False))[1]["remembered"] == "no"
    assert (await always.ask(effort="none"))[1]["remembered"] == "no"
    await always.steering.explorer.drain()


async def test_rollouts_may_think_longer_than_the_answer(make_day: MakeDay) -> None:
    engine = ScriptedEngine(answer=lambda prompt, latent, decoding: "x" * 30 + " 5" if decoding.seed else "5")
    day = await make_day(engine, rewards="consistency=1", vote_tokens=64, remember_threshold=0)
    lengths = []
    generate = engine.generate

    async def watched(prompts, decodings, **named: Any):
        lengths.extend(decoding.max_tokens for decoding in decodings)
        return await generate(prompts, decodings, **named)

    engine.generate = watched
    prompt = rendered(engine, "apples How many?", max_tokens=8)
    await day.ask(prompt, explore=True)
    await day.steering.explorer.drain()
    assert sorted(lengths) == [8, *[64] * 8]
    assert await day.remember.drain()
    assert [episode.answer_text for episode in day.store.episodes] == ["5"]  # the others are too long to give


async def test_engine_that_fails_is_told_in_the_trace(day: Day) -> None:
    async def dead(prompts, decoding, **named: Any):
        raise EngineDeadError("gone")

    day.engine.generate = dead
    _, trace = await day.ask(explore=True)
    await day.steering.explorer.drain()
    settled = await day.traces.get(trace["id"])
    assert (settled["remembered"], settled["why_not_remembered"]) == ("no", "exploring failed")
    assert day.collectors.get_sample_value("latentevolve_explorations_total", {"result": "failed"}) == 1


@pytest.mark.parametrize("rewards", ["consistency=0.8,format=0.2", "consistency=1"])
async def test_answer_in_another_form_than_was_asked_for_is_not_remembered(
    make_day: MakeDay, rewards: str
) -> None:
    engine = ScriptedEngine(answer=lambda prompt, latent, decoding: "so it is 4")
    day = await make_day(engine, rewards=rewards)
    prompt = rendered(engine, "apples How many?", rules={"boxed": True})
    _, trace = await day.ask(prompt, explore=True)
    await day.steering.explorer.drain()
    settled = await day.traces.get(trace["id"])
    assert (
        settled["why_not_remembered"]
        == "no answer was finished in the form that was asked for, or no two agreed"
    )
    assert await day.remember.drain()
    assert day.store.episodes == []


async def test_answers_that_win_by_breaking_the_form_are_neither_given_nor_remembered(
    make_day: MakeDay,
) -> None:
    def breaks_it(prompt, latent, decoding) -> str:
        return "\\boxed{5}" if latent is None and decoding.temperature == 0 else "so it is 4"

    engine = ScriptedEngine(answer=breaks_it)
    day = await make_day(engine, rewards="consistency=1")
    _, trace = await day.ask(rendered(engine, "apples How many?", rules={"boxed": True}), effort="medium")
    assert (trace["reason"], trace["reward_before"], trace["reward_after"]) == ("no-agreement", 0.0, None)
    assert (
        trace["why_not_remembered"]
        == "no answer was finished in the form that was asked for, or no two agreed"
    )
    assert await day.remember.drain()
    assert day.store.episodes == []


async def test_of_answers_that_say_the_same_the_shortest_is_remembered(make_day: MakeDay) -> None:
    def several(prompt, latent, decoding) -> str:
        texts = ("It is 5", "After some thought the answer is 4", "That makes 4", "So we have 4", "8 / 2 = 4")
        return texts[decoding.seed % 5 if decoding.seed else 0]

    day = await make_day(ScriptedEngine(answer=several), rewards="consistency=0.9,confidence=0.1")
    await day.ask(explore=True)
    await day.steering.explorer.drain()
    assert await day.remember.drain()
    (episode,) = day.store.episodes
    assert episode.answer_text == "8 / 2 = 4"


GUESS, WORKED, WORDY = "\\boxed{4}", "8 / 2 = 4 \\boxed{4}", "Let us think. 8 / 2 = 4, so it is \\boxed{4}"


@pytest.mark.parametrize(
    ("sureness", "remembered"),
    [
        ({GUESS: (0.9, 0.6), WORKED: (0.5, 0.95), WORDY: (0.8, 0.98)}, WORKED),  # the shortest of the sure
        ({GUESS: (0.5, 0.94), WORKED: (0.9, 0.95), WORDY: (0.9, 0.98)}, GUESS),
        ({GUESS: (0.9, 0.6), WORKED: (0.9, 0.9), WORDY: (0.5, 0.98)}, WORDY),
    ],
)
async def test_the_shortest_is_remembered_only_where_its_result_is_as_sure(
    make_day: MakeDay, sureness: dict[str, tuple[float, float]], remembered: str
) -> None:
    """Probabilities of the words, and of the result in the box."""
    engine = ScriptedEngine(answer=lambda prompt, latent, decoding: list(sureness)[(decoding.seed or 0) % 3])
    generate = engine.generate

    async def told(prompts, decoding, **named: Any):
        answers = []
        for answer in await generate(prompts, decoding, **named):
            words, result = sureness[answer.text]
            at = answer.text.rindex("4")
            values = [result if n == at else words for n in range(len(answer.token_ids))]
            answers.append(replace(answer, logprobs=tuple(math.log(value) for value in values)))
        return answers

    engine.generate = told
    day = await make_day(engine, rewards="consistency=0.95,confidence=0.05")
    await day.ask(rendered(engine, max_tokens=64), explore=True)
    await day.steering.explorer.drain()
    assert await day.remember.drain()
    (episode,) = day.store.episodes
    assert episode.answer_text == remembered


async def test_nothing_is_explored_while_a_client_waits(make_day: MakeDay) -> None:
    day = await make_day(ScriptedEngine(answer=once_wrong), rewards="consistency=1")
    explorer = day.steering.explorer
    with explorer.client():
        await day.ask("apples How many?", explore=True)
        await explorer.drain()
        assert (explorer.summary()["waiting"], day.engine.calls) == (1, [])
    await explorer.drain()
    assert await day.remember.drain()
    assert len(day.store.episodes) == 1


async def test_exploring_goes_on_by_itself_once_nobody_waits(make_day: MakeDay, monkeypatch) -> None:
    monkeypatch.setattr("server.steering.explore.PAUSE_S", 0.01)
    day = await make_day(ScriptedEngine(answer=once_wrong), rewards="consistency=1")
    with day.steering.explorer.client():
        await day.ask(explore=True)
    for _ in range(1000):
        await asyncio.sleep(0.01)
        if day.store.episodes:
            break
    assert day.store.episodes


async def test_a_client_ends_what_is_explored_and_it_begins_anew_later(make_day: MakeDay) -> None:
    day = await make_day(ScriptedEngine(answer=once_wrong), rewards="consistency=1")
    generate, begun = day.engine.generate, asyncio.Event()

    async def hanging(prompts, decoding, **named: Any):
        begun.set()
        await asyncio.Event().wait()

    day.engine.generate = hanging
    _, trace = await day.ask(explore=True)
    await begun.wait()
    explorer = day.steering.explorer
    with explorer.client():
        await explorer.drain()
        # Nobody knows how far it came, so it counts as if all of it were there: eight of 32 tokens.
        assert explorer.summary() == {"waiting": 1, "running": 0, "tokens_last_hour": 256}
    day.engine.generate = generate
    await explorer.drain()
    assert await day.remember.drain()
    assert (await day.traces.get(trace["id"]))["remembered"] == "stored"
    assert day.count("explorations_total", result="interrupted") == 1
    assert day.count("explorations_total", result="remembered") == 1


async def test_as_many_clients_as_the_operator_allows_do_not_end_it(make_day: MakeDay) -> None:
    day = await make_day(ScriptedEngine(answer=once_wrong), rewards="consistency=1", explore_beside=1)
    with day.steering.explorer.client():
        await day.ask("apples How many?", explore=True)
        await day.steering.explorer.drain()
        with day.steering.explorer.client():
            await day.ask("pears How many?", explore=True)
            await day.steering.explorer.drain()
        assert await day.remember.drain()
        assert len(day.store.episodes) == 1


async def test_prompts_that_were_explored_lately_are_not_explored_for_being_asked_again(
    make_day: MakeDay,
) -> None:
    day = await make_day(ScriptedEngine(answer=once_wrong), rewards="consistency=1", explore_share=1.0)
    for _ in range(3):
        await day.ask("apples How many?")
        await day.steering.explorer.drain()
    assert day.count("explorations_total", result="remembered") == 1
    await day.ask("apples How many?", explore=True)
    await day.steering.explorer.drain()
    assert day.count("explorations_total", result="remembered") == 2


async def test_tokens_of_an_hour_bound_what_did_not_ask_to_be_explored(
    make_day: MakeDay, monkeypatch
) -> None:
    day = await make_day(
        ScriptedEngine(answer=once_wrong),
        rewards="consistency=1",
        explore_share=1.0,
        explore_time_share=1.0,
        explore_tokens_per_hour=1,
    )
    explorer = day.steering.explorer
    for question in ("apples How many?", "pears How many?"):
        await day.ask(question)
        await explorer.drain()
    assert explorer.summary()["waiting"] == 1
    assert explorer.summary()["tokens_last_hour"] > 1
    await day.ask("plums How many?", explore=True)
    await explorer.drain()
    assert explorer.summary()["waiting"] == 1
    monkeypatch.setattr("server.steering.explore.HOUR_S", 0.0)
    await explorer.drain()
    assert explorer.summary() == {"waiting": 0, "running": 0, "tokens_last_hour": 0}


async def test_exploring_takes_no_more_than_its_share_of_the_time(make_day: MakeDay) -> None:
    day = await make_day(
        ScriptedEngine(answer=once_wrong, delay_s=0.02),
        rewards="consistency=1",
        explore_share=1.0,
        explore_time_share=1e-6,
    )
    explorer = day.steering.explorer
    for question in ("apples How many?", "pears How many?"):
        await day.ask(question)
        await explorer.drain()
    assert explorer.summary()["waiting"] == 1


async def test_a_request_that_is_only_explored_does_not_wait_for_its_key(make_day: MakeDay) -> None:
    day = await make_day(
        ScriptedEngine(answer=once_wrong), rewards="consistency=1", low_recalls=False, explore_share=1.0
    )
    with day.steering.explorer.client():
        outcome, _ = await day.ask()
        assert (outcome.mode, outcome.reason, day.engine.calls) == ("plain", "recall-off", [])
    await day.steering.explorer.drain()
    assert await day.remember.drain()
    (episode,) = day.store.episodes
    expected = (await day.engine.keys([episode.prompt_token_ids]))[0].numpy()
    assert np.array_equal(episode.key, expected)


async def test_a_prompt_that_takes_too_long_lets_others_have_their_turn(
    make_day: MakeDay, monkeypatch
) -> None:
    monkeypatch.setattr("server.steering.explore.PAUSE_S", 0.0)
    engine = ScriptedEngine(answer=once_wrong)
    day = await make_day(engine, rewards="consistency=1", explore_concurrency=1)
    explorer, generate, begun = day.steering.explorer, engine.generate, asyncio.Event()

    async def slow(prompts, decoding, **named: Any):
        if "pears" in engine.decode(prompts[0].token_ids):
            return await generate(prompts, decoding, **named)
        begun.set()
        await asyncio.Event().wait()
        return []

    engine.generate = slow
    _, trace = await day.ask("apples How many?", explore=True)
    await day.ask("pears How many?", explore=True)
    for _ in range(MOST_TRIES):
        await begun.wait()
        begun.clear()
        with explorer.client():
            await asyncio.sleep(0)
    await explorer.drain()
    assert await day.remember.drain()
    assert [("pears" in episode.prompt_text) for episode in day.store.episodes] == [True]
    settled = await day.traces.get(trace["id"])
    assert settled["why_not_remembered"] == "clients came whenever it was explored"


async def test_a_request_that_is_refused_after_all_is_not_explored(make_day: MakeDay) -> None:
    day = await make_day(ScriptedEngine(answer=once_wrong), rewards="consistency=1")
    explorer = day.steering.explorer
    with explorer.client():
        _, trace = await day.ask(explore=True)
        explorer.withdraw(trace["id"])
    await explorer.drain()
    assert await day.remember.drain()
    assert (day.store.episodes, explorer.summary()["waiting"]) == ([], 0)


async def test_what_is_forgotten_while_it_is_explored_is_not_remembered(make_day: MakeDay) -> None:
    engine = ScriptedEngine(answer="12")
    day = await make_day(engine, rewards="consistency=1", remember_threshold=0)
    begun, may_go_on = asyncio.Event(), asyncio.Event()
    generate = engine.generate

    async def held(*args: Any, **more: Any) -> Any:
        begun.set()
        await may_go_on.wait()
        return await generate(*args, **more)

    engine.generate = held
    _, trace = await day.ask("apples How many?", explore=True)
    await begun.wait()
    day.steering.explorer.forget("another", None)
    day.steering.explorer.forget("default", {"another prompt"})
    assert day.steering.explorer.summary()["running"] == 1
    day.steering.explorer.forget("default", None)
    may_go_on.set()
    await day.steering.explorer.drain()
    assert await day.remember.drain()
    assert day.store.episodes == []
    found = await day.traces.get(trace["id"])
    assert found is not None
    assert found["why_not_remembered"] == "it was forgotten"


async def test_no_tokens_for_exploring_means_none(make_day: MakeDay) -> None:
    day = await make_day(ScriptedEngine(), explore_share=1.0, explore_tokens_per_hour=0)
    await day.ask()
    await day.steering.explorer.drain()
    assert day.engine.calls == []


async def test_a_prompt_whose_exploration_failed_or_was_withdrawn_is_explored_when_it_is_asked_again(
    make_day: MakeDay,
) -> None:
    engine = ScriptedEngine(answer=lambda prompt, latent, decoding: "5")
    day = await make_day(engine, explore_share=1.0, explore_time_share=1.0, rewards="consistency=1")
    generate = day.engine.generate

    async def dead(*_: Any, **named: Any) -> None:
        raise EngineDeadError("gone")

    day.engine.generate = dead
    await day.ask()
    await day.steering.explorer.drain()
    day.engine.generate = generate
    with day.steering.explorer.client():
        _, trace = await day.ask()
        day.steering.explorer.withdraw(trace["id"])
        await day.ask()
    await day.steering.explorer.drain()
    assert await day.remember.drain()
    assert len(day.store.episodes) == 1
