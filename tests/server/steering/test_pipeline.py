"""The day of one request: what goes in, why, and what is remembered of it."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memory.edge_store import EdgeStore
from memory.episode import Episode, new_id
from memory.prior import DEFAULT_RECALL_FLOOR
from model.engine import Decoding, EngineDeadError
from server.steering.prompt import Options, SteeringRejectedError
from server.steering.search.select import ALIKE
from tests.scripted_engine import ScriptedEngine
from tests.server.steering.conftest import Day, MakeDay, same
from tests.server.steering.fakes import ListStore, answer, rendered


async def test_effort_none_asks_nobody(day: Day) -> None:
    await day.learn()
    before = len(day.engine.calls), day.store.recalls
    outcome, trace = await day.ask(effort="none")
    assert (outcome.mode, outcome.reason, outcome.latent) == ("plain", "effort-none", None)
    assert (len(day.engine.calls), day.store.recalls) == before
    assert trace["latent"] is None


async def test_empty_memory_without_prior_does_not_even_ask_for_the_key(day: Day) -> None:
    outcome, _ = await day.ask()
    assert (outcome.mode, outcome.reason) == ("plain", "memory-empty")
    assert day.engine.calls == []


async def test_refined_request_is_remembered_and_recalled_by_a_similar_one(day: Day) -> None:
    refined = await day.learn("apples How many are left?")
    assert (refined.mode, refined.reason) == ("refined", "improved")
    assert refined.reward_after > refined.reward_before
    (episode,) = day.store.episodes
    assert same(torch.as_tensor(episode.latent), refined.latent)

    similar, trace = await day.ask("apples How many did they sell?")
    assert (similar.mode, similar.reason) == ("recall", "recalled")
    assert similar.episode_ids == (episode.id,)
    assert trace["episodes"] == [{"id": episode.id, "similarity": pytest.approx(similar.similarities[0])}]
    assert same(similar.latent, refined.latent)  # one neighbour on the same base gives its own latent

    unrelated, _ = await day.ask("sonnets Write one.")
    assert (unrelated.mode, unrelated.reason, unrelated.latent) == ("plain", "nothing-recalled", None)


async def test_recall_works_on_the_real_store(make_day: MakeDay, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    store = EdgeStore(
        tmp_path / "episodes",
        space=engine.space.id,
        length=engine.space.length,
        hidden_size=engine.space.hidden_size,
    )
    try:
        day = await make_day(engine, store)
        refined = await day.learn("apples How many are left?")
        similar, _ = await day.ask("apples How many did they sell?")
        assert similar.mode == "recall"
        assert same(similar.latent, refined.latent)
    finally:
        await day.remember.close()
        store.close()


async def test_prior_serves_its_region_and_no_other(day: Day) -> None:
    version = await day.publish("apples How many?")
    covered, _ = await day.ask("apples How many did they sell?")
    assert (covered.mode, covered.reason, covered.prior_version) == ("prior", "prior-covers", version)
    elsewhere, _ = await day.ask("sonnets Write one.")
    assert (elsewhere.mode, elsewhere.reason, elsewhere.prior_version) == (
        "plain",
        "nothing-recalled",
        version,
    )


async def test_recall_and_prior_work_together(make_day: MakeDay) -> None:
    day = await make_day()
    await day.publish("apples How many?", part=0.5)
    refined = await day.learn("apples How many are left?")
    assert refined.mode == "refined"
    outcome, _ = await day.ask("apples How many did they sell?")
    assert (outcome.mode, outcome.reason) == ("recall+prior", "recalled-and-prior-covers")
    assert same(outcome.latent, refined.latent)


async def test_latents_of_an_older_prior_do_not_undo_the_newer_one(make_day: MakeDay) -> None:
    day = await make_day()
    worse = await day.publish("apples How many?", part=0.5)
    refined = await day.learn("apples How many are left?")
    version = await day.publish("apples How many?")
    question = "apples How many did they sell?"
    outcome, _ = await day.ask(question)
    assert (outcome.mode, outcome.prior_version) == ("prior", version)
    back, _ = await day.ask(question, prior=worse)
    assert back.mode == "recall+prior"
    assert same(back.latent, refined.latent)
    without, _ = await day.ask(question, prior="none")
    assert without.mode == "recall"
    assert same(without.latent, refined.latent)


async def test_latents_count_whole_where_the_newer_prior_does_not_speak(make_day: MakeDay) -> None:
    day = await make_day()
    refined = await day.learn("apples How many are left?")
    await day.publish("sonnets Write one.")
    outcome, _ = await day.ask("apples How many did they sell?")
    assert outcome.mode == "recall"
    assert same(outcome.latent, refined.latent)


async def test_floor_of_recall_is_the_requests_else_the_settings_else_the_nights(make_day: MakeDay) -> None:
    day = await make_day()
    await day.learn("apples How many are left?")
    question = "apples How many did they sell?"
    _, trace = await day.ask(question)
    assert trace["options"]["floor"] == DEFAULT_RECALL_FLOOR
    await day.publish("sonnets Write one.", floor=0.999)
    elsewhere, trace = await day.ask(question)
    assert (elsewhere.mode, trace["options"]["floor"]) == ("recall", DEFAULT_RECALL_FLOOR)
    await day.publish("apples How many?", part=0.5, floor=0.999)
    await day.learn("apples How many are left?")
    far, trace = await day.ask(question)
    assert (far.mode, trace["options"]["floor"]) == ("prior", 0.999)
    near, trace = await day.ask(question, floor=0.1)
    assert (near.mode, trace["options"]["floor"]) == ("recall+prior", 0.1)

    named = await make_day(recall_floor=0.1)
    await named.publish("apples How many?", part=0.5, floor=0.999)
    await named.learn("apples How many are left?")
    assert (await named.ask(question))[0].mode == "recall+prior"
    assert (await named.ask(question, floor=0.999))[0].mode == "prior"


async def test_low_is_served_nothing_that_nothing_has_proven(make_day: MakeDay) -> None:
    day = await make_day(low_recalls=False)
    await day.learn("apples How many are left?")
    question = "apples How many did they sell?"
    outcome, _ = await day.ask(question)
    assert (outcome.mode, outcome.reason) == ("plain", "recall-off")
    for asked in ({"k": 4}, {"floor": 0.6}):
        outcome, trace = await day.ask(question, **asked)
        assert trace["episodes"], asked
    searched, trace = await day.ask(question, effort="medium")
    assert searched.mode == "voted"
    assert trace["episodes"] == []
    await day.publish("apples How many?")
    assert (await day.ask(question))[0].mode == "prior"


async def test_pinned_prior_is_used_and_none_means_none(day: Day) -> None:
    old = await day.publish()
    new = await day.publish()
    assert (await day.ask())[0].prior_version == new
    assert (await day.ask(prior=old))[0].prior_version == old
    without, _ = await day.ask(prior="none")
    assert (without.mode, without.reason, without.prior_version) == ("plain", "memory-empty", None)


async def test_swap_keeps_inflight_request_on_old_prior(make_day: MakeDay) -> None:
    class Slow(ScriptedEngine):
        async def keys(self, prompts: object) -> torch.Tensor:
            entered.set()
            await go_on.wait()
            return await super().keys(prompts)

    entered, go_on = asyncio.Event(), asyncio.Event()
    go_on.set()
    day = await make_day(Slow())
    old = await day.publish()
    entered.clear()
    go_on.clear()
    asking = asyncio.create_task(day.ask(effort="medium"))
    await entered.wait()
    new = day.registry.publish(day.priors.current().rows, {})
    day.registry.activate(new, pinned=True)
    assert await day.priors.refresh()
    go_on.set()
    outcome, trace = await asking
    assert outcome.prior_version == old == trace["prior_version"]
    assert (await day.ask())[0].prior_version == new


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prior": "v77"}, "latent.prior"),
        ({"search": "gradient", "effort": "medium"}, "latent.search"),
    ],
)
async def test_rejected_requests_leave_no_trace(make_day: MakeDay, options: dict, param: str) -> None:
    day = await make_day(gradient_worker=False)
    trace_id = new_id()
    with pytest.raises(SteeringRejectedError) as caught:
        await day.steering.steer(
            rendered(day.engine), Options.of(day.settings, **({"effort": "low"} | options)), trace_id
        )
    assert caught.value.param == param
    assert await day.traces.get(trace_id) is None
    assert day.store.episodes == []


async def test_gradient_refused_by_the_engine_is_the_named_field_or_a_reason(make_day: MakeDay) -> None:
    def flip(prompt: str, latent: object, decoding: Decoding) -> str:
        return str((decoding.seed or 0) % 2)  # rollouts that differ, so that a gradient is asked for

    gradientless = ScriptedEngine(answer=flip, differentiable=False)
    day = await make_day(gradientless, rewards="consistency=1", high_search="gradient")
    with pytest.raises(SteeringRejectedError) as caught:
        await day.ask(effort="high", search="gradient")
    assert caught.value.param == "latent.search"

    day = await make_day(gradientless, rewards="consistency=1", high_search="gradient")
    first, second = [await day.ask(effort="high") for _ in range(2)]
    assert first[0].reason == "search-unsupported"
    assert second[1]["options"]["search"] == "evolution"


async def test_a_constraint_that_cannot_be_decoded_leaves_the_gradient_search_on(make_day: MakeDay) -> None:
    day = await make_day(ScriptedEngine(), rewards="consistency=1")
    prompt = replace(rendered(day.engine), decoding=Decoding(max_tokens=16, native=object()))
    outcome = await day.steering.steer(prompt, Options.of(day.settings, "high", search="evolution"), new_id())
    assert outcome.reason == "search-unsupported"
    _, trace = await day.ask(effort="high", search="gradient")
    assert trace["options"]["search"] == "gradient"
    assert "search-unsupported" not in trace["reason"]


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        (20, 20),
        (1, 1),
        (None, 24),  # as long as refining decodes, where the context is the limit
    ],
)
@pytest.mark.parametrize("effort", ["low", "medium", "high"])
async def test_latents_never_take_room_of_the_answer_that_was_asked_for(
    make_day: MakeDay, effort: str, asked: int | None, needed: int
) -> None:
    prompt = replace(rendered(ScriptedEngine()), asked_tokens=asked)
    least = len(prompt.token_ids) + ScriptedEngine().space.length + needed
    enough, little = [
        await make_day(ScriptedEngine(max_model_len=context), search_max_tokens=24)
        for context in (least, least - 1)
    ]
    await enough.publish()
    await little.priors.refresh()
    assert (await enough.ask(prompt, effort))[0].reason != "no-room"
    outcome, _ = await little.ask(prompt, effort)
    assert (outcome.mode, outcome.reason, outcome.latent) == ("plain", "no-room", None)
    assert little.engine.calls == []


@pytest.mark.parametrize("more", [0, 1, 10_000])
async def test_latents_never_shorten_an_answer_that_may_fill_the_context(
    make_day: MakeDay, more: int
) -> None:
    prompt = rendered(ScriptedEngine())
    day = await make_day(ScriptedEngine(max_model_len=len(prompt.token_ids) + 100), search_max_tokens=24)
    await day.publish()
    assert (await day.ask(prompt, "low"))[0].reason != "no-room"
    outcome, _ = await day.ask(replace(prompt, asked_tokens=100 + more), "low")
    assert (outcome.reason, outcome.latent) == ("no-room", None)


async def test_prompt_that_the_template_did_not_render_is_not_steered(day: Day) -> None:
    await day.publish()
    prompt = rendered(day.engine)
    cut = type(prompt)(prompt.token_ids[:-3], prompt.text, prompt.question, prompt.decoding)
    outcome, _ = await day.ask(cut)
    assert (outcome.mode, outcome.reason) == ("plain", "no-place-for-latents")


async def test_failed_self_check_turns_steering_off_and_says_which(day: Day) -> None:
    await day.publish()
    day.steering.disable("key-hook")
    for effort in ("low", "high"):
        outcome, _ = await day.ask(effort=effort)
        assert (outcome.mode, outcome.reason) == ("plain", "self-check-failed:key-hook")
    assert (await day.ask(effort="none"))[0].reason == "effort-none"


async def test_store_that_dies_costs_recall_but_no_answer(day: Day) -> None:
    await day.learn()
    day.store.away = True
    plain, _ = await day.ask()
    assert (plain.mode, plain.reason) == ("plain", "store-unavailable")
    await day.publish()
    prior, _ = await day.ask()
    assert (prior.mode, prior.reason) == ("prior", "store-unavailable")
    refined, trace = await day.ask("trains How far?", "high")
    assert refined.reason.endswith("+store-unavailable")
    assert trace["remembered"] == "pending"
    assert day.count("recalls_total", result="unavailable") == 3

    day.store.away = False
    assert await day.remember.drain()
    assert (await day.traces.get(trace["id"]))["remembered"] == "stored"
    assert len(day.store.episodes) == 2


async def test_store_that_is_away_from_the_start_costs_no_answer(make_day: MakeDay) -> None:
    store = ListStore()
    store.away = True
    day = await make_day(store=store)
    assert (await day.ask())[0].reason == "store-unavailable"
    store.away = False
    assert (await day.ask())[0].reason == "memory-empty"


async def test_dead_engine_is_a_reason(day: Day) -> None:
    await day.publish()
    day.engine.alive = False
    outcome, _ = await day.ask()
    assert (outcome.mode, outcome.reason) == ("plain", "engine-error")


async def test_surprise_is_logged_and_answered_plainly(day: Day, caplog: pytest.LogCaptureFixture) -> None:
    await day.publish()

    async def surprise(prompts: object) -> None:
        raise ZeroDivisionError("unforeseen")

    day.engine.keys = surprise
    with caplog.at_level(logging.ERROR):
        outcome, _ = await day.ask()
    assert (outcome.mode, outcome.reason) == ("plain", "steering-failed")
    assert "unforeseen" in caplog.text


async def test_episode_with_an_unfit_latent_is_not_used(day: Day) -> None:
    await day.learn()
    day.store.episodes[0].latent[0, 0] = float("nan")
    outcome, _ = await day.ask()
    assert (outcome.mode, outcome.reason) == ("plain", "nothing-recalled")


async def test_episode_of_another_space_is_not_used(day: Day) -> None:
    await day.learn()
    object.__setattr__(day.store.episodes[0], "space", "another")
    assert (await day.ask())[0].reason == "nothing-recalled"


async def test_answer_that_no_latent_improves_is_remembered_without_one(make_day: MakeDay) -> None:
    engine = ScriptedEngine(answer=lambda prompt, latent, decoding: "the same")
    day = await make_day(engine, rewards="consistency=1")
    outcome, trace = await day.ask(effort="medium")
    assert (outcome.mode, outcome.reason, outcome.latent) == ("voted", "agreed", None)
    assert outcome.answer.text == "the same"
    assert (outcome.reward_before, outcome.reward_after) == (1.0, 1.0)
    assert trace["remembered"] == "pending"
    assert await day.remember.drain()
    (episode,) = day.store.episodes
    assert (episode.latent_earned, episode.answer_text, episode.reward) == (False, "the same", 1.0)
    later, _ = await day.ask()
    assert (later.mode, later.reason) == ("plain", "nothing-recalled")
    assert later.episode_ids == ()


async def test_answer_that_was_cut_off_is_not_remembered(make_day: MakeDay) -> None:
    engine = ScriptedEngine(answer=lambda prompt, latent, decoding: "far too long for that")
    day = await make_day(engine)
    prompt = rendered(engine, "apples How many?")
    _, trace = await day.ask(replace(prompt, decoding=Decoding(max_tokens=4)), "medium")
    assert (
        trace["why_not_remembered"]
        == "no answer was finished in the form that was asked for, or no two agreed"
    )


async def test_recall_that_is_proven_to_harm_nearby_is_not_used(day: Day) -> None:
    await day.learn("apples How many?")
    (first,) = day.store.episodes
    few = [replace(first, id=new_id(), start_lift=-0.5) for _ in range(3)]
    day.store.add(few)
    assert (await day.ask())[0].mode == "recall"  # too few to prove anything
    day.store.add([replace(first, id=new_id(), start_lift=-0.9) for _ in range(9)])
    outcome, _ = await day.ask()
    assert (outcome.mode, outcome.reason, outcome.latent) == ("plain", "recall-retired", None)
    refined, _ = await day.ask(effort="medium", budget_tokens=8)
    assert (refined.mode, refined.episode_ids) == ("plain", ())


async def test_lifts_under_another_prior_say_nothing_of_recall_here(day: Day) -> None:
    await day.learn("apples How many?")
    (first,) = day.store.episodes
    day.store.add([replace(first, id=new_id(), start_lift=-0.9, prior_version="v7") for _ in range(12)])
    assert (await day.ask())[0].mode == "recall"


async def test_latent_behind_many_answers_without_one_is_recalled(day: Day) -> None:
    await day.learn("apples How many are left?")
    (earned,) = day.store.episodes
    key = (await day.engine.keys([rendered(day.engine, "apples How many?").token_ids]))[0].numpy()
    nearer = [replace(earned, id=new_id(), key=key, latent_earned=False) for _ in range(6)]
    day.store.add(nearer)
    outcome, _ = await day.ask()
    assert (outcome.mode, outcome.episode_ids) == ("recall", (earned.id,))


async def test_refining_measures_the_lift_of_what_would_be_served(day: Day) -> None:
    await day.learn("apples How many?")
    await day.learn("apples How many are left?")
    await day.learn("sonnets Write one.")
    first, second, third = day.store.episodes
    assert (first.start_lift, third.start_lift) == (None, None)
    assert second.start_lift > 0


async def test_recall_that_harms_is_outvoted(day: Day) -> None:
    await day.learn("apples How many?")
    prompt = rendered(day.engine, "apples How many?")
    away = 2 * day.engine.neutral_latent() - day.engine.best_latent(prompt.token_ids)
    day.store.episodes[0].latent[:] = away.numpy()  # worse than doing nothing
    outcome, _ = await day.ask(effort="medium")
    assert (outcome.mode, outcome.reason) == ("voted", "agreed")
    assert outcome.latent is None


async def test_start_that_is_best_gives_the_answer_and_is_remembered(day: Day) -> None:
    await day.publish("apples How many?")  # it predicts the best latent there is
    outcome, trace = await day.ask("apples How many are left?", "medium")
    assert (outcome.mode, outcome.reason) == ("voted", "agreed")
    assert outcome.latent is not None
    assert outcome.reward_after > outcome.reward_before
    assert trace["remembered"] == "pending"


async def test_deadline_still_answers(make_day: MakeDay) -> None:
    day = await make_day()
    await day.publish()
    generate = day.engine.generate

    async def hanging(prompts: object, decoding: object, **named: Any) -> None:
        await asyncio.Event().wait()

    day.engine.generate = hanging
    outcome, trace = await day.ask(effort="high", deadline_s=0.05)
    assert (outcome.mode, outcome.reason) == ("prior", "deadline")
    assert trace["stopped"] == "deadline"
    nothing, _ = await day.ask("sonnets Write one.", "high", deadline_s=0.05)
    assert (nothing.mode, nothing.reason) == ("plain", "deadline")
    day.engine.generate = generate


@pytest.mark.parametrize(
    ("ended", "reason", "text"),
    [(["4", "5", "5"], "agreed-until-deadline", "5"), (["4", "5"], "deadline", None), ([], "deadline", None)],
)
async def test_answers_that_ended_before_the_deadline_vote(
    make_day: MakeDay, ended: list[str], reason: str, text: str | None
) -> None:
    day = await make_day(rewards="consistency=1")

    async def slow(prompts: object, decoding: object, *, finished: Any = None) -> None:
        for index, said in enumerate(ended, start=1):
            finished(index, answer(said))
        await asyncio.Event().wait()

    day.engine.generate = slow
    outcome, trace = await day.ask(effort="medium", deadline_s=0.05)
    assert (outcome.reason, outcome.answer and outcome.answer.text) == (reason, text)
    assert (trace["stopped"], trace["remembered"]) == ("deadline", "no")


async def test_engine_that_fails_while_refining_leaves_what_was_recalled(day: Day) -> None:
    await day.publish()

    async def dead(prompts: object, decoding: object, **named: Any) -> None:
        raise EngineDeadError("gone")

    day.engine.generate = dead
    outcome, _ = await day.ask(effort="high")
    assert (outcome.mode, outcome.reason) == ("prior", "search-failed")


async def test_an_answer_that_was_chosen_is_remembered_whatever_its_reward(make_day: MakeDay) -> None:
    """The night decides anew which choice is right."""
    day = await make_day(remember_threshold=1.0)
    prompt = rendered(day.engine)
    held = rendered(day.engine, choices=("yes", "no"))
    _, trace = await day.ask(prompt, effort="medium")
    assert trace["remembered"] == "no"
    _, trace = await day.ask(held, effort="medium")
    assert trace["why_not_remembered"] is None
    assert await day.remember.drain()
    assert [episode.choices for episode in day.store.episodes] == [("yes", "no")]


@pytest.mark.parametrize(
    ("options", "settings", "why"),
    [
        ({"effort": "high", "store": False}, {}, "the request asked for it not to be"),
        ({"effort": "high"}, {"remember_threshold": 0.99}, "is below 0.99"),
        ({"effort": "low"}, {}, "nothing was searched for"),
    ],
)
async def test_trace_says_why_nothing_was_remembered(
    make_day: MakeDay, options: dict, settings: dict, why: str
) -> None:
    day = await make_day(**settings)
    _, trace = await day.ask(**options)
    assert trace["remembered"] == "no"
    assert why in trace["why_not_remembered"]
    assert trace["episode_id"] is None
    assert await day.remember.drain()
    assert day.store.episodes == []


async def test_episode_keeps_what_a_night_needs(day: Day) -> None:
    outcome = await day.learn()
    (episode,) = day.store.episodes
    episode.check(*day.engine.space.shape)
    assert episode.prompt_token_ids == rendered(day.engine).token_ids
    assert day.engine.decode(episode.answer_token_ids) == episode.answer_text
    assert episode.plain_reward == outcome.reward_before
    assert outcome.reward_after - ALIKE < episode.reward <= outcome.reward_after  # the shortest that says so
    assert episode.signals.keys() == {"confidence"}
    assert (episode.effort, episode.search, episode.prior_version) == ("high", "evolution", None)
    assert (await day.traces.get(episode.trace_id))["episode_id"] == episode.id


async def test_best_answer_is_remembered_beside_a_latent_that_only_beat_the_plain_one(
    make_day: MakeDay,
) -> None:
    def answer(prompt, latent, decoding) -> str:
        if decoding.temperature > 0:
            return "some" if (decoding.seed or 0) % 8 < 2 else "yes"
        return "none" if latent is None else "some"

    day = await make_day(
        ScriptedEngine(answer=answer), rewards="consistency=0.8,confidence=0.2", high_votes=8
    )
    outcome = await day.learn(search="evolution")
    (episode,) = day.store.episodes
    assert (episode.answer_text, episode.latent_earned) == ("yes", True)
    assert (outcome.answer.text, outcome.latent) == ("yes", None)
    assert episode.reward == outcome.reward_after


async def test_what_low_would_serve_votes_also_where_the_search_begins_at_what_is_recalled(
    make_day: MakeDay,
) -> None:
    def asked(_: str, latent: torch.Tensor | None, decoding: Decoding) -> str:
        if latent is None:
            return f"it is {100 + (decoding.seed or 0)}"  # no two of them agree
        return "it is 12" if same(latent, by_row) else "it is 5"

    engine = ScriptedEngine(answer=asked)
    by_row = engine.best_latent(rendered(engine, "apples How many?").token_ids)
    day = await make_day(
        engine, rewards="consistency=1", low_recalls=False, high_votes=8, high_steps=1, recall_floor=0.0
    )
    version = await day.publish()
    low, _ = await day.ask("apples How many are left?")
    assert (low.mode, same(low.latent, by_row)) == ("prior", True)
    prompt = rendered(engine, "apples How many in all?")
    key = (await engine.keys([prompt.token_ids]))[0].numpy()
    near = Episode(
        space=engine.space.id,
        key=key,
        latent=(by_row + torch.roll(by_row, 1, dims=1)).numpy(),
        reward=0.9,
        signals={},
        prompt_token_ids=prompt.token_ids,
        answer_token_ids=(1,),
        prompt_text=prompt.text,
        answer_text="it is 5",
        prior_version=version,
    )
    await asyncio.to_thread(day.store.add, [near])
    engine.calls.clear()
    outcome, trace = await day.ask("apples How many are left?", "high")
    first = next(call for call in engine.calls if call.method == "generate")
    assert (outcome.mode, outcome.answer.text) == ("voted", "it is 12")
    assert same(outcome.latent, by_row)
    assert outcome.prior_version == version
    sides = [None if one is None else same(one, by_row) for one in first.latents]
    assert (sides.count(None), sides.count(True), sides.count(False)) == (5, 5, 1)  # greedy ones, and 4 votes
    assert trace["mode"] == "voted"
    assert await day.remember.drain()
    [episode] = [one for one in day.store.episodes if one.id != near.id]
    assert episode.start_lift > 0  # of the row, and not of what was recalled on top of it


async def test_same_request_gives_the_same_latent(make_day: MakeDay) -> None:
    outcomes = []
    for seed in (None, None, 7):
        day = await make_day()
        outcomes.append((await day.ask(effort="high", seed=seed, store=False))[0])
    first, again, other = (outcome.latent for outcome in outcomes)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


async def test_budget_of_the_request_holds(day: Day) -> None:
    outcome, trace = await day.ask(effort="high", budget_tokens=150)
    assert 0 < outcome.usage.generated_tokens <= 150
    assert trace["stopped"] == "budget"


@pytest.mark.parametrize("search", ["vote", "evolution", "gradient"])
async def test_every_search_serves(make_day: MakeDay, search: str) -> None:
    day = await make_day(ScriptedEngine(steepness=1.0, hidden_size=16), rewards="consistency=1,confidence=1")
    _, trace = await day.ask(effort="high", search=search)
    assert trace["options"]["search"] == search
    assert trace["timings_s"].keys() == {"key", "transfer", "search", "total"}
    assert trace["steps"][0]["step"] == 0


async def test_counts_and_metrics_agree(day: Day) -> None:
    await day.learn("apples How many?")
    await day.ask("apples Which?")
    await day.ask("sonnets Write one.")
    assert day.metrics.summary()["hit_rate"] == 0.5
    assert day.count("recalls_total", result="hit") == 1
    assert day.count("episodes_total", result="stored") == 1
    assert day.count("stage_seconds_count", stage="key") == 3
