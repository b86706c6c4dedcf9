"""What `bench serve` asks of which server, in which order."""

from collections.abc import Iterator

import pytest

from bench.serve.arms import BARE
from bench.serve.rounds import Addresses, Plan, run
from tests.cli.fake_gateway import FakeGateway, Served

TEXTS = [f"Which is number {n}?" for n in range(8)]


@pytest.fixture
def bare() -> Iterator[FakeGateway]:
    """What stands for bare vLLM."""
    fake = FakeGateway()
    served = Served(fake)
    yield fake
    served.close()


def measure(bare: FakeGateway, gateway: FakeGateway, plan: Plan) -> dict:
    return run(Addresses(bare.url, gateway.url), plan, TEXTS, lambda *_: None)


def plan(**changes: object) -> Plan:
    options = {"arms": (BARE, "none", "low"), "levels": (1, 2), "rounds": 2, "requests": 1, "max_tokens": 7}
    return Plan(**{**options, "remembered": 2, **changes})


def test_each_arm_has_each_round_at_its_server(bare: FakeGateway, gateway: FakeGateway) -> None:
    found = measure(bare, gateway, plan())
    assert {level: {arm: len(rounds) for arm, rounds in arms.items()} for level, arms in found.items()} == {
        level: {BARE: 2, "none": 2, "low": 2} for level in (1, 2)
    }
    assert all(sent.get("latent") is None for sent in bare.asked)
    assert {sent["latent"]["effort"] for sent in gateway.asked} == {"none", "low"}
    assert len(bare.asked) == 2 + 2 * 2 * 4  # warm-up, then levels, rounds, requests
    asked = [sent["messages"][0]["content"] for sent in bare.asked + gateway.asked]
    assert len(set(asked)) == len(asked)
