"""Rows of a measurement, made by hand."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

from model.final_answer import final_answer

Made = tuple[str, bool, Mapping[str, float]]
"""Text, whether it is right, and signals of an answer."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Scripted tensors are tiny: threads that wait for each other cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def row(question: str, answers: Sequence[Made], *, cut: Sequence[int] = ()) -> dict[str, Any]:
    """Return a row; its first answer is the greedy one, those numbered in `cut` were cut off."""
    return {
        "seed": 0,
        "stage": "rewards",
        "arm": "bare",
        "question": question,
        "expected": 1,
        "answers": [
            {
                "text": text,
                "tokens": 3,
                "vote": None if number in cut else final_answer(text),
                "correct": right,
                "signals": dict(signals),
            }
            for number, (text, right, signals) in enumerate(answers)
        ],
        "spent": {name: {"generated": 8, "forward": 40} for name in ("format", "confidence")},
    }
