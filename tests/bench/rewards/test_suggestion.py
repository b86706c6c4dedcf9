"""Weights that rows speak for."""

import itertools

import numpy as np

from bench.rewards.answers import Answers
from bench.rewards.suggestion import grid, suggest
from tests.bench.rewards.conftest import row


def rows_of(questions: int, seed: int, informative: bool) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(questions):
        answers = []
        for at in range(6):
            right = at % 2 == 0
            known = float(0.4 * right + 0.5 * rng.random()) if informative else rng.random()
            answers.append((str(at), right, {"known": known, "noise": rng.random(), "other": rng.random()}))
        rows.append(row(f"q{number}", answers))
    return rows


def test_weightings_differ_in_more_than_scale_and_simple_ones_come_first() -> None:
    weightings = grid(3)
    assert weightings[:3] == [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    assert all(set(weights) <= {0, 0.25, 0.5, 0.75, 1} for weights in weightings)
    for one, other in itertools.combinations(np.array(weightings), 2):
        assert np.linalg.matrix_rank(np.stack([one, other])) == 2
    directions = {
        tuple(np.round(np.array(w) / max(w), 9)) for w in itertools.product(range(5), repeat=3) if any(w)
    }
    assert len(weightings) == len(directions)


def test_signal_that_knows_is_weighed_most() -> None:
    found = suggest(Answers.of(rows_of(30, 0, informative=True), ["noise", "known", "other"]))
    assert found is not None
    assert max(found.weights, key=lambda name: found.weights[name]) == "known"
    assert found.unseen is not None
    assert found.unseen.low > 0.6
    assert found.questions == 30


def test_luck_of_many_weightings_does_not_survive_leaving_questions_out() -> None:
    seen, unseen = [], []
    for seed in range(6):
        found = suggest(Answers.of(rows_of(10, seed, informative=False), ["known", "noise", "other"]))
        assert found is not None
        assert found.unseen is not None
        seen.append(found.seen)
        unseen.append(found.unseen.mean)
    assert np.mean(seen) > 0.55
    assert np.mean(unseen) < np.mean(seen) - 0.05


def test_of_equally_good_weights_the_fewest_signals_are_taken() -> None:
    rows = [row("q", [("1", True, {"a": 0.9, "b": 0.8}), ("2", False, {"a": 0.1, "b": 0.2})])] * 3
    found = suggest(Answers.of(rows, ["a", "b"]))
    assert found is not None
    assert found.setting == "a=1"


def test_nothing_is_suggested_without_right_and_wrong_answers() -> None:
    assert suggest(Answers.of([row("q", [("1", True, {"a": 0.9}), ("1", True, {"a": 0.1})])], ["a"])) is None
