"""Who is held out, what that changes for them, and what is compared."""

import asyncio
from typing import Any

import pytest

from memory.database import StateUnavailableError
from memory.experiment import Experiments, Switch, Value
from memory.state import State
from server.steering.experiment import Experiment
from server.steering.outcome import Answer, Assignment, Outcome
from tests.server.steering.conftest import Day, MakeDay

LIKE = "apples How many are left?"
"""Similar to what is remembered."""


def arms(experiment: Experiment, names: range, tenant: str = "default") -> list[str]:
    found = [experiment.assign(tenant, f"user {name}", "prompt") for name in names]
    return [one.arm for one in found if one is not None]


def test_a_user_is_always_in_the_same_arm_else_a_prompt_is(state: State) -> None:
    one, other = (Experiment(Experiments(state, "space"), 0.25) for _ in range(2))
    assert arms(one, range(2000)) == arms(other, range(2000))
    assert 0.2 < arms(one, range(2000)).count("holdout") / 2000 < 0.3
    assert one.assign("default", "anna", "prompt") == one.assign("default", "anna", "another prompt")
    assert one.assign("default", None, "prompt") != one.assign("default", None, "another prompt")
    assert one.assign("default", None, "anna") != one.assign("default", "anna", "")
    assert Experiment(Experiments(state, "space"), 0.0).assign("default", "anna", "prompt") is None
    assert arms(one, range(2000), "other") != arms(one, range(2000))


def test_who_is_held_out_stays_so_when_the_share_grows(state: State) -> None:
    less, more = (Experiment(Experiments(state, "space"), share) for share in (0.1, 0.3))
    held = [name for name, arm in enumerate(arms(less, range(1000))) if arm == "holdout"]
    assert {arms(more, range(1000))[name] for name in held} == {"holdout"}


async def in_arm(day: Day, arm: str, effort: Any = "low", **options: Any) -> tuple[Outcome, dict[str, Any]]:
    """Ask as a user of this arm."""
    users = (f"user {number}" for number in range(1000))
    who = next(
        user for user in users if getattr(day.experiment.assign("default", user, ""), "arm", None) == arm
    )
    return await day.ask(LIKE, effort, who=who, **options)


@pytest.fixture
async def held(make_day: MakeDay) -> Day:
    """A day with something to recall, of whose users half are held out."""
    day = await make_day(holdout_share=0.5)
    await day.learn(effort_source="latent.effort")
    return day


async def test_who_is_held_out_is_answered_plainly_and_the_others_as_ever(held: Day) -> None:
    outcome, trace = await in_arm(held, "holdout")
    assert (outcome.mode, outcome.reason, outcome.latent) == ("plain", "holdout", None)
    assert trace["experiment"]["arm"] == "holdout"
    outcome, trace = await in_arm(held, "steered")
    assert (outcome.mode, outcome.reason) == ("recall", "recalled")
    assert trace["experiment"]["arm"] == "steered"


@pytest.mark.parametrize("options", [{"k": 3}, {"prior": "none", "k": 3}])
async def test_who_says_how_to_be_steered_is_in_no_experiment(held: Day, options: dict[str, Any]) -> None:
    outcome, trace = await in_arm(held, "holdout", **options)
    assert (outcome.mode, trace["experiment"]) == ("recall", None)
    outcome, trace = await in_arm(held, "holdout", effort_source="latent.effort")
    assert (outcome.mode, trace["experiment"]) == ("recall", None)


async def test_whom_nothing_would_steer_is_in_no_experiment(held: Day) -> None:
    outcome, trace = await held.ask("sonnets Write one.", who="anybody")
    assert (outcome.reason, trace["experiment"]) == ("nothing-recalled", None)


async def test_without_a_share_nobody_is(make_day: MakeDay) -> None:
    day = await make_day()
    await day.learn(effort_source="latent.effort")
    _, trace = await day.ask(LIKE, who="anybody")
    assert trace["experiment"] is None


@pytest.mark.parametrize("effort", ["low", "medium"])
async def test_what_is_held_out_is_explored_all_the_same(make_day: MakeDay, effort: Any) -> None:
    day = await make_day(holdout_share=0.5, explore_share=1.0)
    await day.learn(effort_source="latent.effort")
    before = day.count("explorations_total", result="remembered")
    outcome, trace = await in_arm(day, "holdout", effort)
    assert outcome.reason == "holdout"
    await day.steering.explorer.drain()
    assert day.count("explorations_total", result="remembered") == before + 1
    found = await day.traces.get(trace["id"])
    assert found is not None
    assert "explored" in found


def noted(day: Day, metric: str) -> list[tuple[str, float]]:
    found = Experiments(day.state, day.engine.space.id).values()
    return [(value.arm, value.value) for _, _, value in found if value.metric == metric]


async def remembered(day: Day, trace_id: str) -> str:
    """Explore, and return what samples agreed on."""
    await day.steering.explorer.drain()
    assert await day.remember.drain()
    return next(one.answer_text for one in day.store.episodes if one.trace_id == trace_id)


@pytest.mark.parametrize("agrees", [True, False])
async def test_an_answer_is_compared_with_what_samples_agree_on(make_day: MakeDay, agrees: bool) -> None:
    day = await make_day(holdout_share=0.5, explore_share=1.0)
    await day.learn(effort_source="latent.effort")
    _, trace = await in_arm(day, "holdout")
    text = await remembered(day, trace["id"]) if agrees else "The answer is 1"
    day.steering.answered(trace["id"], Answer((1, 2, 3), text, finished=True))
    assert await remembered(day, trace["id"])
    assert await day.experiment.drain()
    assert noted(day, "agreement") == [("holdout", float(agrees))]
    assert noted(day, "tokens") == [("holdout", 3.0)]
    [(_, seconds)] = noted(day, "latency_s")
    assert seconds > 0


async def test_an_answer_that_was_cut_off_agrees_with_nothing(state: State) -> None:
    experiment = Experiment(Experiments(state, "space"), 0.5)
    experiment.start()
    experiment.begin("t", "default", Assignment("u", "steered"), None)
    experiment.agreed("t", "It is 7")
    experiment.answered("t", Answer((1,), "It is 7", finished=False))
    experiment.answered("t", Answer((1, 2), "It is 7", finished=True))
    experiment.agreed("t", "It is 7")
    await experiment.close()
    found = [(value.metric, value.value) for _, _, value in Experiments(state, "space").values()]
    assert [pair for pair in found if pair[0] != "latency_s"] == [("tokens", 1.0), ("agreement", 0.0)]


def worse(count: int) -> list[Value]:
    return [
        Value("rating", arm, f"{arm}{number}", float(arm == "holdout"))  # type: ignore[arg-type]
        for number in range(count)
        for arm in ("steered", "holdout")
    ]


async def test_evidence_of_harm_turns_steering_off_everywhere_until_it_is_put_back(held: Day) -> None:
    experiments = Experiments(held.state, held.engine.space.id)
    elsewhere = Experiment(experiments, 0.5)
    experiments.note("default", worse(4))
    await held.experiment.look()
    assert not held.experiment.off("default")
    experiments.note("default", worse(30))
    await held.experiment.look()
    assert held.experiment.off("default")
    outcome, trace = await in_arm(held, "steered")
    assert (outcome.mode, outcome.reason, trace["experiment"]) == ("plain", "steering-off", None)
    outcome, _ = await held.ask(LIKE, "high")
    assert outcome.reason == "steering-off"
    assert not elsewhere.off("default")
    await elsewhere.look()
    assert elsewhere.off("default")
    assert "rating is 1.00 lower" in elsewhere.known("default").switch.message

    known = await elsewhere.turn("default", Switch(False))
    assert (known.switch.off, known.comparisons["rating"].arms["steered"].n) == (False, 0)
    await held.experiment.look()
    assert not held.experiment.off("default")
    assert held.experiment.known("default").comparisons["rating"].arms["steered"].n == 0
    outcome, _ = await in_arm(held, "steered")
    assert outcome.mode == "recall"


async def test_harm_to_one_tenant_turns_nothing_off_for_another(held: Day) -> None:
    Experiments(held.state, held.engine.space.id).note("acme", worse(30))
    await held.experiment.look()
    assert (held.experiment.off("acme"), held.experiment.off("default")) == (True, False)
    assert held.experiment.tenants_off == 1
    assert held.experiment.known("default").comparisons["rating"].arms["steered"].n == 0
    outcome, _ = await in_arm(held, "steered")
    assert outcome.mode == "recall"


async def test_an_operator_turns_steering_off_also_where_there_is_no_experiment(make_day: MakeDay) -> None:
    day = await make_day()
    await day.learn(effort_source="latent.effort")
    await day.experiment.turn("default", Switch(True))
    outcome, _ = await day.ask(LIKE)
    assert outcome.reason == "steering-off"
    outcome, _ = await day.ask(LIKE, "none")
    assert outcome.reason == "effort-none"


async def test_values_that_cannot_be_written_end_nothing(
    state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    experiments = Experiments(state, "space")
    experiment = Experiment(experiments, 0.5, poll_s=0.01)

    def away(*_: Any) -> Any:
        raise StateUnavailableError("no answer")

    for name in ("note", "values"):
        monkeypatch.setattr(experiments, name, away)
    experiment.start()
    watching = asyncio.create_task(experiment.watch())
    experiment.rated("default", Assignment("u", "steered"), 1.0)
    assert await experiment.drain()
    monkeypatch.undo()
    experiment.rated("default", Assignment("v", "steered"), 1.0)
    assert await experiment.drain()
    async with asyncio.timeout(30):
        while not experiment.known("default").comparisons["rating"].arms["steered"].n:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    watching.cancel()
    await experiment.close()
    assert "not noted" in caplog.text
