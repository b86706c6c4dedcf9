"""Answering by the probabilities of choices."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.engine import EngineError, SteeredPrompt
from server.steering.search.choose import Thought, choose
from tests.scripted_engine import ScriptedEngine
from tests.server.steering.conftest import MakeDay
from tests.server.steering.fakes import rendered

YES, NO = CHOICES = ("yes", "no")
LEANS = (0.3, 0.7)
"""What the model thinks of a question to which the answer is yes: it says no nine times of ten."""


class Leaning(ScriptedEngine):
    """Thinks of choices as told, of a prompt without a latent and of one with."""

    def __init__(self, plain: Mapping[str, Sequence[float]], steered: Sequence[float] = (0.5, 0.5)) -> None:
        super().__init__()
        self.plain, self.steered = plain, steered
        self.asked_plainly = False

    async def choice_log_probabilities(
        self, prompts: Sequence[SteeredPrompt], choices: Any, *, held: bool
    ) -> torch.Tensor:
        rows = []
        for prompt in prompts:
            self.asked_plainly |= prompt.latent is None
            text = self.decode(prompt.token_ids)
            of_it = next(p for name, p in self.plain.items() if name in text)
            rows.append(of_it if prompt.latent is None else self.steered)
        return torch.tensor(rows).log()


async def chosen(
    engine: ScriptedEngine,
    known: Sequence[Sequence[float]],
    strength: float = 1.0,
    *,
    held: Sequence[Sequence[float]] = (),
    steered: bool = False,
) -> str:
    prompt = rendered(engine, choices=CHOICES)
    latent = engine.neutral_latent() if steered else None
    with_it = SteeredPrompt(prompt.token_ids, latent)
    thought = [Thought(np.log(one), np.log(other)) for one, other in zip(known, held or known, strict=True)]
    return (await choose(engine, prompt, with_it, thought, strength, remembered=False)).text


MIXED = [(0.3, 0.7), (0.02, 0.98)]
"""A question like the one asked, and one to which the answer is no."""


async def test_what_the_model_says_of_everything_is_taken_off() -> None:
    engine = Leaning({"": LEANS})
    assert await chosen(engine, []) == NO
    assert await chosen(engine, MIXED * 15) == YES
    assert await chosen(engine, MIXED * 15, strength=0.0) == NO


@pytest.mark.parametrize("lean", [10.0, 1e3, 1e9])
async def test_a_lean_is_taken_off_however_strong_it_is(lean: float) -> None:
    def said(odds: float) -> tuple[float, float]:
        return odds / (odds + lean), lean / (odds + lean)

    known = [said(odds) for odds in (0.5, 2.0)] * 16
    assert await chosen(Leaning({"": said(2.0)}), known) == YES
    assert await chosen(Leaning({"": said(0.5)}), known) == NO


async def test_a_few_requests_that_may_all_be_right_change_little() -> None:
    assert await chosen(Leaning({"": LEANS}), [(0.1, 0.9)] * 2) == NO


async def test_what_both_readings_say_of_most_requests_is_frequent_and_no_lean() -> None:
    """No is right six times of seven: both readings say so, though one of them leans to yes."""
    engine = Leaning({"": (0.5, 0.5)})
    whole = [(0.45, 0.55)] * 30 + [(0.7, 0.3)] * 5
    held = [(0.2, 0.8)] * 30 + [(0.9, 0.1)] * 5
    assert await chosen(engine, whole, held=held) == NO
    assert await chosen(engine, whole, held=[(0.5, 0.5)] * 35) == YES  # the other reading says nothing


async def test_requests_of_one_reading_tell_of_the_lean_and_of_no_frequency() -> None:
    engine = Leaning({"": (0.5, 0.5)})
    prompt = rendered(engine, choices=CHOICES)
    once = [Thought(np.log((0.45, 0.55)))] * 30 + [Thought(np.log((0.7, 0.3)))] * 5
    chosen = await choose(engine, prompt, SteeredPrompt(prompt.token_ids), once, 1.0, remembered=False)
    assert chosen.text == YES


async def test_behind_a_latent_the_likeliest_is_answered_as_it_stands() -> None:
    engine = Leaning({"": (0.9, 0.1)}, steered=(0.4, 0.6))
    assert await chosen(engine, [(0.1, 0.9)] * 30, steered=True) == NO


async def test_choices_that_were_remembered_calibrate_the_next_ones(make_day: MakeDay) -> None:
    day = await make_day(Leaning({"clear": (0.02, 0.98), "": LEANS}), low_recalls=False)
    alone, _ = await day.ask(rendered(day.engine, "apples Which?", choices=CHOICES), "medium", store=False)
    assert (alone.mode, alone.reason, alone.answer.text) == ("calibrated", "choices", NO)
    for number in range(40):
        like = "clear" if number % 2 else "dim"
        await day.ask(rendered(day.engine, f"apples {like} {number}?", choices=CHOICES), "medium")
    assert await day.remember.drain()
    beside, trace = await day.ask(rendered(day.engine, "apples Which?", choices=CHOICES), "medium")
    assert beside.answer.text == YES
    assert trace["remembered"] == "pending"
    assert await day.remember.drain()
    episode = day.store.get(trace["episode_id"])
    assert (beside.reward_before, beside.reward_after) == (episode.plain_reward, episode.reward)
    assert beside.reward_before < beside.reward_after
    other, _ = await day.ask(rendered(day.engine, "sonnets Which?", choices=CHOICES), "medium")
    assert other.answer.text == NO


async def test_low_answers_choices_plainly_until_a_row_serves_them(make_day: MakeDay) -> None:
    day = await make_day(Leaning({"": (0.9, 0.1)}, steered=(0.2, 0.8)), low_recalls=False)
    held = rendered(day.engine, choices=CHOICES)
    outcome, _ = await day.ask(held)
    assert (outcome.mode, outcome.answer) == ("plain", None)
    await day.publish()
    outcome, _ = await day.ask(held)
    assert (outcome.mode, outcome.reason, outcome.answer.text) == ("prior", "prior-covers", NO)
    assert not day.engine.asked_plainly  # what the model thinks by itself is not asked where nobody wants it
    assert day.store.episodes == []


@pytest.mark.parametrize("answers", [1, 2])
async def test_several_answers_are_decoded_as_low_does(make_day: MakeDay, answers: int) -> None:
    day = await make_day()
    outcome, _ = await day.ask(replace(rendered(day.engine), answers=answers), "medium")
    expected = ("voted", "agreed") if answers == 1 else ("plain", "several-answers")
    assert (outcome.mode, outcome.reason) == expected
    assert (outcome.answer is None) == (answers == 2)


async def test_explored_choices_are_remembered_with_what_the_model_thought(make_day: MakeDay) -> None:
    day = await make_day(Leaning({"": LEANS}))
    await day.ask(rendered(day.engine, choices=CHOICES), explore=True)
    await day.steering.explorer.drain()
    assert await day.remember.drain()
    (episode,) = day.store.episodes
    for reading in (episode.choice_log_probabilities, episode.held_log_probabilities):
        assert np.exp(reading) == pytest.approx(LEANS, abs=1e-5)
    assert (episode.choices, episode.latent_earned) == (CHOICES, False)
    assert day.count("explorations_total", result="remembered") == 1


@pytest.mark.parametrize(("fault", "reason"), [("fails", "search-failed"), ("hangs", "deadline")])
async def test_choices_that_cannot_be_scored_are_answered_as_low_does(
    make_day: MakeDay, fault: str, reason: str
) -> None:
    day = await make_day(Leaning({"": LEANS}))

    async def broken(*arguments: Any, **named: Any) -> Any:
        if fault == "fails":
            raise EngineError("out of order")
        await asyncio.Event().wait()

    day.engine.choice_log_probabilities = broken
    held = rendered(day.engine, choices=CHOICES)
    outcome, trace = await day.ask(held, "medium", deadline_s=0.05)
    assert (outcome.mode, outcome.reason, outcome.answer) == ("plain", reason, None)
    assert trace["remembered"] == "no"
    await day.publish()
    outcome, _ = await day.ask(held, deadline_s=0.05)
    assert (outcome.mode, outcome.reason, outcome.answer) == ("prior", reason, None)
    assert outcome.latent is not None


async def test_recalled_latents_are_no_reason_not_to_calibrate(make_day: MakeDay) -> None:
    day = await make_day(Leaning({"": LEANS}, steered=(0.9, 0.1)), low_recalls=True)
    await day.learn("apples How many are left?")
    recalled, _ = await day.ask("apples How many did they sell?")
    assert recalled.mode == "recall"
    outcome, _ = await day.ask(rendered(day.engine, "apples Which?", choices=CHOICES), "medium")
    assert (outcome.mode, outcome.answer.text, outcome.latent) == ("calibrated", NO, None)
