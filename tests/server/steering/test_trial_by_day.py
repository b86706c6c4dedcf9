"""A prior's rows prove themselves by day, on explored requests, and lose what they had."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from memory.database import StateUnavailableError
from memory.episode import new_id, prompt_digest
from memory.state import Feedback
from model.engine import Decoding
from tests.scripted_engine import ScriptedEngine
from tests.server.steering.conftest import Day, MakeDay
from tests.server.steering.fakes import rendered

QUESTIONS = [f"apples How many in basket {number}?" for number in range(40)]


class Helped(ScriptedEngine):
    """Without a latent two samples of three agree and the greedy answer is another; with one it `knows`."""

    def __init__(self, knows: str = "it is 4") -> None:
        super().__init__(answer=self._say)
        self.knows = knows

    def _say(self, prompt: str, latent: torch.Tensor | None, decoding: Decoding) -> str:
        if latent is not None:
            return self.knows
        return "it is 4" if (decoding.seed or 0) % 3 else f"it is {10 + (decoding.seed or 0)}"


async def measuring(make_day: MakeDay, engine: ScriptedEngine, **changes: Any) -> Day:
    """Return a day that recalls nothing, so that the prior alone answers."""
    return await make_day(engine, rewards="consistency=1", recall_floor=1.0, **changes)


async def explored(day: Day, questions: list[str]) -> list[str]:
    """Ask, wait until what was explored is noted, and return the reasons that the answers gave."""
    reasons = []
    for question in questions:
        outcome, _ = await day.ask(question, explore=True)
        reasons.append(outcome.reason)
        await day.steering.explorer.drain()
    return reasons


async def test_row_on_trial_comes_to_serve_when_it_deserves_to(make_day: MakeDay) -> None:
    day = await measuring(make_day, Helped())
    version = await day.publish(pinned=False)
    reasons = await explored(day, QUESTIONS[:20])
    assert (reasons[0], reasons[-1]) == ("prior-on-trial", "prior-covers")
    assert sorted(reasons) == reasons[::-1]  # once it serves it goes on serving
    outcome, _ = await day.ask("apples How many did they sell?")
    assert (outcome.mode, outcome.prior_version) == ("prior", version)
    [row] = day.priors.summary()["rows"].values()
    assert row["standing"] == "serves"
    assert day.count("measurements_total", result="measured") == len(reasons)


async def test_serving_row_that_harms_is_retired(make_day: MakeDay) -> None:
    day = await measuring(make_day, Helped(knows="it is 5"))
    version = await day.publish(pinned=False)
    night = [(f"prompt {number}", 1.0) for number in range(8)]
    day.state.add_outcomes(day.engine.space.id, "default", f"{version}/0", night, "night")
    await day.priors.refresh()
    reasons = await explored(day, QUESTIONS)
    assert (reasons[0], reasons[-1]) == ("prior-covers", "prior-retired")
    served = await day.ask("apples How many did they sell?")
    assert (served[0].mode, served[0].reason) == ("plain", "prior-retired")
    measured = day.count("measurements_total", result="measured")
    await explored(day, ["apples How many are left?"])  # nothing brings it back, so nothing is measured
    assert day.count("measurements_total", result="measured") == measured


async def test_rows_on_trial_cost_requests_that_are_not_explored_nothing(day: Day) -> None:
    await day.publish(pinned=False)
    outcome, _ = await day.ask(explore=False)
    assert (outcome.mode, outcome.reason) == ("plain", "prior-on-trial")
    assert [call.method for call in day.engine.calls if call.method == "generate"] == []
    keys = len(day.engine.calls)
    await day.ask(explore=False)
    assert len(day.engine.calls) == keys


@pytest.mark.parametrize(
    "options", [{"explore": False}, {"explore": True, "store": False}, {"explore": True, "prior": "none"}]
)
async def test_requests_that_are_not_explored_or_name_a_prior_measure_nothing(
    make_day: MakeDay, options: dict[str, object]
) -> None:
    day = await measuring(make_day, Helped())
    version = await day.publish(pinned=False)
    await day.ask(QUESTIONS[0], **options)
    await day.ask(QUESTIONS[1], explore=True, prior=version)
    await day.steering.explorer.drain()
    assert day.state.outcomes(day.engine.space.id, "default") == {}


async def test_named_version_speaks_whatever_the_evidence(day: Day) -> None:
    version = await day.publish(pinned=False)
    outcome, _ = await day.ask(prior=version)
    assert (outcome.mode, outcome.prior_version) == ("prior", version)


async def test_what_was_measured_stands_in_the_trace_and_is_noted_by_the_prompts_digest(
    make_day: MakeDay,
) -> None:
    day = await measuring(make_day, Helped())
    version = await day.publish(pinned=False)
    _, trace = await day.ask(QUESTIONS[0], explore=True)
    await day.steering.explorer.drain()
    settled = await day.traces.get(trace["id"])
    assert settled is not None
    (difference,) = day.state.outcomes(day.engine.space.id, "default")[f"{version}/0"]
    assert settled["explored"]["rows"] == {f"{version}/0": difference}
    digest = prompt_digest(rendered(day.engine, QUESTIONS[0]).token_ids)
    again = [(digest, -1.0)]
    assert day.state.add_outcomes(day.engine.space.id, "default", f"{version}/0", again, "day") == 0


async def test_state_that_is_away_costs_the_measurement_and_not_the_memory(
    make_day: MakeDay, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = await measuring(make_day, Helped(), remember_threshold=0.1)
    await day.publish(pinned=False)

    def away(*_: object) -> int:
        raise StateUnavailableError("gone")

    monkeypatch.setattr(day.state, "add_outcomes", away)
    await explored(day, QUESTIONS[:1])
    assert day.count("measurements_total", result="failed") == 1
    assert await day.remember.drain()
    assert len(day.store.episodes) == 1


async def test_choices_are_measured_by_the_consensus_too(make_day: MakeDay) -> None:
    engine = ScriptedEngine(
        answer=lambda prompt, latent, decoding: (
            "yes" if latent is not None or (decoding.seed or 0) % 4 else "no"
        )
    )
    day = await measuring(make_day, engine)
    version = await day.publish(pinned=False)
    prompt = rendered(engine)
    prompt = replace(prompt, decoding=replace(prompt.decoding, choices=("yes", "no")))
    await day.ask(prompt, explore=True)
    await day.steering.explorer.drain()
    (difference,) = day.state.outcomes(engine.space.id, "default")[f"{version}/0"]
    assert difference > 0
    assert np.isclose(difference % 0.2, 0.0) or np.isclose(difference % 0.2, 0.2)


async def speak(day: Day, trace_id: str, metric: str, value: Any) -> None:
    """Say something of an answer, as the route for feedback does."""
    day.state.add_feedback(Feedback(new_id(), trace_id, metric, value))
    await day.steering.people.spoke(trace_id, "default")


async def test_people_take_the_proof_of_a_row_that_agrees_with_what_they_call_wrong(
    make_day: MakeDay,
) -> None:
    day = await measuring(make_day, Helped())
    await day.publish(pinned=False)
    traces = []
    for question in QUESTIONS[:20]:
        _, trace = await day.ask(question, explore=True)
        await day.steering.explorer.drain()
        traces.append(trace["id"])
    outcome, _ = await day.ask("apples How many did they sell?")
    assert outcome.mode == "prior"
    for trace_id in traces:
        await speak(day, trace_id, "demonstration", "it is 3")
    outcome, _ = await day.ask("apples How many did they sell?")
    assert (outcome.mode, outcome.reason) == ("plain", "prior-on-trial")


@pytest.mark.parametrize("early", [False, True])
async def test_people_are_heard_before_a_row_is_measured_and_after(make_day: MakeDay, early: bool) -> None:
    day = await measuring(make_day, Helped())
    version = await day.publish(pinned=False)
    for question in QUESTIONS[:2]:
        _, trace = await day.ask(question, explore=True)
        if early:
            await speak(day, trace["id"], "demonstration", "it is 3")
            await day.steering.explorer.drain()
        else:
            await day.steering.explorer.drain()
            assert await day.traces.drain()  # what was graded is read from the state now
            await speak(day, trace["id"], "demonstration", "it is 3")
    assert day.state.outcomes(day.engine.space.id, "default") == {f"{version}/0": [0.0, 0.0]}


async def test_no_praise_helps_a_row(make_day: MakeDay) -> None:
    day = await measuring(make_day, Helped(knows="it is 5"))
    version = await day.publish(pinned=False)
    _, trace = await day.ask(QUESTIONS[0], explore=True)
    await day.steering.explorer.drain()
    space = day.engine.space.id
    [before] = day.state.outcomes(space, "default")[f"{version}/0"]
    assert before < 0
    await speak(day, trace["id"], "demonstration", "it is 5")
    assert day.state.outcomes(space, "default") == {f"{version}/0": [before]}
