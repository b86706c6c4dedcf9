"""The clock of a request's engine."""

import asyncio
import time

from model.engine_time import EngineTime, engine_time, in_engine


async def call(seconds: float) -> None:
    with in_engine():
        await asyncio.sleep(seconds)


async def test_calls_that_overlap_count_once() -> None:
    clock = EngineTime()
    token = engine_time.set(clock)
    begun = time.monotonic()
    await asyncio.gather(call(0.1), call(0.1), call(0.05))
    await call(0.1)
    elapsed = time.monotonic() - begun
    engine_time.reset(token)
    assert clock.used
    assert 0.19 <= clock.seconds <= elapsed


async def test_time_between_calls_does_not_count() -> None:
    clock = EngineTime()
    token = engine_time.set(clock)
    begun = time.monotonic()
    await call(0.01)
    await asyncio.sleep(0.1)
    await call(0.01)
    assert time.monotonic() - begun - clock.seconds >= 0.09
    engine_time.reset(token)


async def test_nobody_asks_for_the_time_of_other_calls() -> None:
    clock = EngineTime()
    await call(0.0)
    assert not clock.used
    assert clock.seconds == 0
