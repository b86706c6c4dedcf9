"""A verifier in the day of a request: it decides, and when it is away there is an answer all the same."""

from collections.abc import AsyncIterator

import pytest
from pydantic import ValidationError

from tests.server.steering.conftest import MakeDay
from tests.server.steering.verifier_service import Service, reply, running


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as service:
        yield service


async def test_verifier_scores_what_is_refined(make_day: MakeDay, service: Service) -> None:
    day = await make_day(rewards="verifier=1", verifier_url=service.url, population=2, remember_threshold=0)
    service.judge = lambda answers: [0.9 if text.startswith("good") else 0.1 for text in answers]
    outcome, trace = await day.ask(effort="high")
    assert trace["signals_unavailable"] == []
    assert trace["signals_before"] == {"verifier": outcome.reward_before}
    assert outcome.reward_before in (0.1, 0.9)
    assert day.count("verifier_calls_total", result="scored") == len(service.asked) > 0
    assert {asked["question"] for asked in service.asked} == {"apples How many?"}


async def test_verifier_that_is_away_is_told_and_harms_nobody(make_day: MakeDay, service: Service) -> None:
    service.replies = [reply({}, "400 Wrong")]
    day = await make_day(rewards="confidence=0.5,verifier=0.5", verifier_url=service.url)
    outcome, trace = await day.ask(effort="high")
    assert outcome.reward_before is not None
    assert outcome.reason.endswith("+verifier-unavailable")
    assert trace["reason"] == outcome.reason
    assert trace["signals_unavailable"] == ["verifier"]
    assert set(trace["signals"]) == {"confidence"}
    assert day.count("verifier_calls_total", result="status") == 1


async def test_pipeline_does_not_start_with_a_verifier_that_has_no_url(make_day: MakeDay) -> None:
    with pytest.raises(ValidationError, match="LATENTEVOLVE_VERIFIER_URL"):
        await make_day(rewards="verifier=1")
