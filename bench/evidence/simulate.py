"""Asks the test, and the one before it, about made-up streams.

Owns what is counted: who serves, and after how many prompts. Knows nothing of how streams come about.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from bench.evidence.streams import Answered, Differences, Draw, halves
from bench.statistics import interval
from memory.evidence import PROOF, SHARED, Standing, weigh

RESAMPLES = 500
FEWEST = 5
"""Prompts with which an interval was believed."""
LATER = 400
"""Outcomes that a day adds to those of a small night."""


@dataclass(frozen=True)
class Course:
    """What came of one kind of stream."""

    stream: str
    serves: tuple[float, ...]
    """Share that have served by each number of prompts, looked at after every one."""
    retired: float
    """Share that are retired at the end."""
    median: int | None
    """Prompts by which half of them were decided; None: fewer were."""
    interval: tuple[float, ...]
    """Share of which a 95 % interval is above zero at each number of prompts, looked at once."""
    interval_ever: float
    """The same, looked at after each of these numbers."""


@dataclass(frozen=True)
class Nights:
    """What came of small nights whose halves judge each other."""

    prompts: int
    learns: str
    night: float
    """Share that serve by the differences of one half and then of the other, at the stake for such nights."""
    day: float
    """The same, with the outcomes of a day without effect behind it."""
    whole: float
    """The same at the whole stake."""
    mean: float
    """Share that serve by the mean of the halves' e-values."""


@dataclass(frozen=True)
class Told:
    """What comes of one kind of row where people demonstrate what is right in place of wrong answers."""

    stream: str
    share: float
    """Of the wrong answers that are served."""
    serves: float
    """Share that ever serve, where the lesser of what was measured and what people say counts."""
    retired: float
    """Share that are retired at the end."""
    serves_whole: float
    """The same, with people's word in the place of what was measured."""
    retired_whole: float


def decided(x: Differences, stake: float = 1.0) -> tuple[int, Standing]:
    """Return after how many outcomes a row is no longer on trial, and what it is then.

    One that stays on trial has one more than there are. A standing never goes back, so it can be bisected.
    """
    low, high = 0, len(x) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if weigh(x[:middle], stake=stake).standing == "on trial" else (low, middle)
    return high, weigh(x[:high], stake=stake).standing


def course(name: str, draw: Draw, looks: tuple[int, ...], repetitions: int, rng: Generator) -> Course:
    """Return what both tests say of so many streams, as long as the last of `looks`."""
    after, found, believed, retired = [], [], [], 0
    for _ in range(repetitions):
        x = draw(rng, looks[-1])
        when, standing = decided(x)
        after.append(when)
        found.append(standing)
        retired += weigh(x).standing == "retired"
        believed.append([interval_is_above(x[:n]) for n in looks])
    served = np.array([n if one == "serves" else math.inf for n, one in zip(after, found, strict=True)])
    median = int(np.median(after))
    held = np.array(believed)
    return Course(
        name,
        tuple(float((served <= n).mean()) for n in looks),
        retired / repetitions,
        median if median <= looks[-1] else None,
        tuple(held.mean(axis=0).tolist()),
        float(held.any(axis=1).mean()),
    )


def told(
    name: str,
    draw: Callable[[Generator, int], Answered],
    share: float,
    prompts: int,
    repetitions: int,
    rng: Generator,
) -> Told:
    """Return what people's word does to rows; what is served is the row once it does, else no row."""
    served, retired = [0, 0], [0, 0]
    for _ in range(repetitions):
        found, speak = draw(rng, prompts), rng.random(prompts) < share
        for at, said in enumerate((np.minimum(found.measured, found.true), found.true)):
            x = np.where(speak & found.wrong_without, said, found.measured)
            when, standing = decided(x)
            if standing == "serves":
                x[when:] = np.where(speak & found.wrong_with, said, found.measured)[when:]
            served[at] += standing == "serves"
            retired[at] += weigh(x).standing == "retired"
    (serves, whole), (gone, gone_whole) = [
        [count / repetitions for count in each] for each in (served, retired)
    ]
    return Told(name, share, serves, gone, whole, gone_whole)


def nights(prompts: int, features: int, signal: float, repetitions: int, rng: Generator) -> Nights:
    """Return what comes of small nights of so many prompts; see `streams.halves`."""
    night = day = whole = mean = 0
    for _ in range(repetitions):
        one, other = halves(rng, prompts, features, signal)
        both = np.concatenate([one, other])
        later = np.concatenate([both, rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], LATER)])
        when, standing = decided(later, SHARED)
        night += standing == "serves" and when <= prompts
        day += standing == "serves"
        whole += decided(later)[1] == "serves"
        mean += (weigh(one).e_value + weigh(other).e_value) / 2 >= PROOF
    learns = f"{features} features" if features else "which answer is frequent"
    return Nights(prompts, learns, *(count / repetitions for count in (night, day, whole, mean)))


def interval_is_above(x: Differences) -> bool:
    """Return whether the 95 % bootstrap interval of the mean of five or more lies above zero."""
    return len(x) >= FEWEST and interval(x, resamples=RESAMPLES).low > 0
