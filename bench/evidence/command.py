"""`latentevolve bench evidence`.

Owns its options and the tables. Runs no model: the streams are made up.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer

from bench.options import numbers
from bench.result import Output, Report
from cli.options import Json
from cli.screen import Screen

SPEAK = (0.0, 0.2, 1.0)
"""Shares of the wrong answers of which people say what would be right."""


def evidence(
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Streams of each kind.")] = 400,
    looks: Annotated[
        str, typer.Option("--looks", help="Numbers of prompts, rising; streams end after the last.")
    ] = "9,15,28,60,120,400",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything that is drawn.")] = 0,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """How often the test that lets rows serve is wrong. And how soon it is right, on made-up streams."""
    at = tuple(numbers(looks, "--looks", least=1, rising=True))
    screen = Screen(as_json)
    options = {"repetitions": repetitions, "looks": list(at), "seed": seed}
    report = Report(screen, "evidence", options, output)

    import numpy as np

    from bench.evidence.simulate import Course, course, nights, told
    from bench.evidence.streams import GOOD, HARM, NO_GOOD, OUTSIDE, TOLD, Draw

    rng = np.random.default_rng(seed)

    def courses(streams: Mapping[str, Draw]) -> list[Course]:
        return [course(name, draw, at, repetitions, rng) for name, draw in streams.items()]

    with screen.busy("streams without effect, with one, small nights, and what people say"):
        nothing, good, harm = courses({**NO_GOOD, **OUTSIDE}), courses(GOOD), courses(HARM)
        small = [
            nights(prompts, features, 0.0, repetitions, rng)
            for features in (0, 4)
            for prompts in (28, 60, 100)
        ]
        learning = [nights(prompts, 4, 4.0, repetitions, rng) for prompts in (28, 60, 100)]
        people = [
            told(name, draw, share, at[-1], repetitions, rng)
            for name, draw in TOLD.items()
            for share in SPEAK
        ]
    screen.table(
        ["no good", f"serves within {at[-1]}", "interval, one look", f"{len(at)} looks"],
        [[one.stream, *_shares(one.serves[-1], one.interval[-1], one.interval_ever)] for one in nothing],
        title="False serves: at most 5 % are promised, but for the last row",
    )
    screen.table(
        ["good", *(f"{n} prompts" for n in at), "half by"],
        [[one.stream, *map(_beside, one.serves, one.interval), one.median or "later"] for one in good],
        title="Power: share that serve (share of which an interval, looked at once, is above zero)",
    )
    screen.table(
        ["harm", f"retired within {at[-1]}", "half by", "served"],
        [[one.stream, _share(one.retired), one.median or "later", _share(one.serves[-1])] for one in harm],
        title="Harm",
    )
    for title, found in (("nothing to learn: false serves", small), ("something to learn: power", learning)):
        screen.table(
            ["prompts", "learns", "night", "and a day", "the same, whole stake", "mean of both halves"],
            [[one.prompts, one.learns, *_shares(one.night, one.day, one.whole, one.mean)] for one in found],
            title=f"Small nights, halves that judge each other, {title}",
        )
    screen.table(
        ["rows", "of wrong answers", "ever serve", "retired", "its word whole: serve", "retired"],
        [
            [
                one.stream,
                _share(one.share),
                *_shares(one.serves, one.retired, one.serves_whole, one.retired_whole),
            ]
            for one in people
        ],
        title="People who demonstrate what is right in place of so many wrong answers",
    )
    report.publish(
        {
            "no_good": [asdict(one) for one in nothing],
            "good": [asdict(one) for one in good],
            "harm": [asdict(one) for one in harm],
            "small_nights": [asdict(one) for one in small],
            "small_nights_learning": [asdict(one) for one in learning],
            "told": [asdict(one) for one in people],
        }
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _shares(*values: float) -> list[str]:
    return [_share(value) for value in values]


def _beside(ours: float, theirs: float) -> str:
    return f"{100 * ours:.0f} ({100 * theirs:.0f})"
