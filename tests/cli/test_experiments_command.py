"""The experiment on the command line."""

import json
from collections.abc import Callable

from tests.cli.conftest import Ran
from tests.cli.fake_gateway import FakeGateway

Run = Callable[..., Ran]


def test_both_arms_are_shown_beside_each_other(run: Run, gateway: FakeGateway) -> None:
    gateway.share = 0.05
    out = run("experiments").out
    assert "5 % of users" in out
    (line,) = (line for line in out.splitlines() if line.startswith("rating"))
    for shown in ("0.81 of 950", "0.64 of 52", "+0.17", "+0.02 to +0.32", "does good: 44.9 for it"):
        assert shown in line
    assert any(line.startswith("tokens") and line.count("–") == 5 for line in out.splitlines())
    assert json.loads(run("experiments", "--json").out)["data"][0]["share"] == 0.05


def test_without_a_share_the_setting_is_named(run: Run, gateway: FakeGateway) -> None:
    assert "LATENTEVOLVE_HOLDOUT_SHARE is 0" in run("experiments").out
    assert "held out" not in run("stats").out


def test_steering_that_is_off_says_why_and_how_to_put_it_back(run: Run, gateway: FakeGateway) -> None:
    gateway.share = 0.05
    out = run("experiments", "--steering", "off").out
    assert gateway.steering == "off"
    assert "off since 2031-01-01T12:00:00 by the evidence: rating is 0.30 lower" in out
    assert "latentevolve experiments --steering on" in out
    assert "by the evidence: rating is 0.30 lower" in run("stats").out
    assert "off since" not in run("experiments", "--steering", "on").out
    assert run("experiments", "--steering", "maybe").code == 2
