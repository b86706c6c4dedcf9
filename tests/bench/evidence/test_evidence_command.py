"""The simulation of the test that lets rows serve."""

import json

import numpy as np
from typer.testing import CliRunner

from bench.evidence.simulate import course, decided, interval_is_above, told
from bench.evidence.streams import TOLD, answered
from bench.main import app

LOOKS = (10, 30)


def run(*options: str) -> dict[str, object]:
    result = CliRunner().invoke(
        app, ["evidence", "--repetitions", "2", "--looks", "5,10", "--json", *options]
    )
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)["results"]
    return found


def test_same_seed_gives_the_same_results() -> None:
    found = run("--seed", "3")
    assert found == run("--seed", "3")
    assert set(found) == {"no_good", "good", "harm", "small_nights", "small_nights_learning", "told"}


def test_looks_that_do_not_rise_are_refused() -> None:
    result = CliRunner().invoke(app, ["evidence", "--looks", "10,5"])
    assert result.exit_code != 0


def test_decision_is_found_where_it_was_made() -> None:
    assert decided(np.ones(100)) == (7, "serves")
    assert decided(-np.ones(100)) == (7, "retired")
    assert decided(np.concatenate([np.ones(7), -np.ones(93)])) == (7, "serves")
    assert decided(np.zeros(9)) == (10, "on trial")


def test_streams_are_counted_by_what_both_tests_say() -> None:
    wins = course("wins", lambda rng, n: np.ones(n), LOOKS, 3, np.random.default_rng(0))
    assert (wins.serves, wins.interval, wins.median, wins.retired) == ((1.0, 1.0), (1.0, 1.0), 7, 0.0)
    losses = course("losses", lambda rng, n: -np.ones(n), LOOKS, 3, np.random.default_rng(0))
    assert (losses.serves, losses.interval, losses.interval_ever, losses.retired) == (
        (0, 0),
        (0, 0),
        0.0,
        1.0,
    )
    nothing = course("nothing", lambda rng, n: np.zeros(n), LOOKS, 3, np.random.default_rng(0))
    assert (nothing.serves, nothing.interval, nothing.median) == ((0.0, 0.0), (0.0, 0.0), None)


def test_interval_of_few_prompts_is_not_believed() -> None:
    assert not interval_is_above(np.ones(4))
    assert interval_is_above(np.ones(5))


def test_what_people_say_takes_proof_and_gives_none_unless_it_is_taken_whole() -> None:
    rng = np.random.default_rng(0)
    chance = told("chance", TOLD["as good, labels are chance"], 1.0, 400, 20, rng)
    assert (chance.serves, chance.serves_whole) == (0.0, 1.0)
    blind = told("always wrong, labels praise it", answered(0.0, 1.0, (1.0, 0.0)), 1.0, 100, 3, rng)
    assert (blind.serves, blind.retired) == (1.0, 1.0)  # people speak where what is served is wrong
    silent = told("silent", answered(0.0, 1.0, (1.0, 0.0)), 0.0, 100, 3, rng)
    assert (silent.serves, silent.retired) == (1.0, 0.0)
