"""The schedule on the command line."""

import json
from collections.abc import Callable

import pytest

from tests.cli.conftest import Ran
from tests.cli.fake_gateway import FakeGateway

Run = Callable[..., Ran]


def test_the_schedule_is_shown_with_what_comes_and_what_was(run: Run, gateway: FakeGateway) -> None:
    out = run("schedule").out
    assert "0 3 * * * (the setting), in UTC" in out
    assert "2031-01-02 03:00:00" in out
    assert "every 200 new (the setting); new by now: 7" in out
    assert "2031-01-01 13:00:00: the active prior learned from what was erased" in out
    assert "promoted at 2031-01-01 03:01:00 by schedule" in out


def test_what_is_given_is_changed_and_the_rest_stays(run: Run, gateway: FakeGateway) -> None:
    assert "0 5 * * * (chosen; the setting: 0 3 * * *)" in run("schedule", "--cron", "0 5 * * *").out
    assert "never (chosen; the setting: 200)" in run("schedule", "--episodes", "0").out
    assert gateway.chosen == {"cron": "0 5 * * *", "episodes": 0}
    run("schedule", "--cron", "default")
    assert gateway.chosen == {"cron": None, "episodes": 0}
    shown = json.loads(run("schedule", "--reset", "--json").out)
    assert shown["chosen"] == gateway.chosen == {"cron": None, "episodes": None}


def test_what_is_no_cron_is_named_with_an_example(run: Run, gateway: FakeGateway) -> None:
    ran = run("schedule", "--cron", "at noon")
    assert ran.code == 1
    assert "cron: neither five fields nor never" in ran.err
    assert "--cron '0 3 * * *'" in ran.err


@pytest.mark.parametrize(
    "arguments", [("--episodes", "many"), ("--reset", "--cron", "never"), ("--reset", "--episodes", "1")]
)
def test_wrong_usage_is_two(run: Run, gateway: FakeGateway, arguments: tuple[str, ...]) -> None:
    assert run("schedule", *arguments).code == 2
    assert gateway.chosen == {"cron": None, "episodes": None}
