"""Metrics: the names that dashboards rely on."""

from prometheus_client import CollectorRegistry, generate_latest

from model.engine import Usage
from server.steering.call import Outcome
from server.steering.metrics import Metrics


def test_names_are_prefixed_and_stable() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    assert {family.name for family in registry.collect()} == {
        "latentevolve_requests",
        "latentevolve_recalls",
        "latentevolve_recall_similarity",
        "latentevolve_stage_seconds",
        "latentevolve_reward",
        "latentevolve_refine_generated_tokens",
        "latentevolve_explorations",
        "latentevolve_explore_generated_tokens",
        "latentevolve_measurements",
        "latentevolve_verifier_calls",
        "latentevolve_episodes",
        "latentevolve_prior_swaps",
        "latentevolve_active_prior",
        "latentevolve_prior_rows",
    }


def test_outcome_is_counted_with_its_rewards() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.count(Outcome("refined", "improved", reward_before=0.2, reward_after=0.9, usage=Usage(3, 5, 8)))
    metrics.show_active_prior("v3")
    text = generate_latest(registry).decode()
    assert 'latentevolve_requests_total{mode="refined",reason="improved"} 1.0' in text
    assert 'latentevolve_reward_sum{when="after"} 0.9' in text
    assert "latentevolve_refine_generated_tokens_total 5.0" in text
    assert 'latentevolve_active_prior{version="v3"} 1.0' in text
    assert 'version="none"' not in text
    metrics.show_standings(["serves", "on trial", "serves"])
    text = generate_latest(registry).decode()
    assert 'latentevolve_prior_rows{standing="serves"} 2.0' in text
    assert 'latentevolve_prior_rows{standing="retired"} 0.0' in text
