"""Metrics: the names that dashboards rely on."""

from prometheus_client import CollectorRegistry, generate_latest

from memory.episode import TENANT
from model.engine import Usage
from server.steering.metrics import Metrics
from server.steering.outcome import Outcome


def test_names_are_prefixed_and_stable() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    assert {family.name for family in registry.collect()} == {
        "latentevolve_requests",
        "latentevolve_time_to_headers_seconds",
        "latentevolve_overhead_seconds",
        "latentevolve_recalls",
        "latentevolve_recall_similarity",
        "latentevolve_stage_seconds",
        "latentevolve_reward",
        "latentevolve_search_generated_tokens",
        "latentevolve_explorations",
        "latentevolve_explore_generated_tokens",
        "latentevolve_measurements",
        "latentevolve_verifier_calls",
        "latentevolve_episodes",
        "latentevolve_prior_swaps",
        "latentevolve_feedback",
    }


def test_outcome_is_counted_with_its_rewards() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    outcome = Outcome("refined", "improved", reward_before=0.2, reward_after=0.9, usage=Usage(3, 5, 8))
    metrics.count("high", outcome, 1.5)
    text = generate_latest(registry).decode()
    assert 'latentevolve_requests_total{effort="high",mode="refined",reason="improved"} 1.0' in text
    assert 'latentevolve_reward_sum{when="after"} 0.9' in text
    assert "latentevolve_search_generated_tokens_total 5.0" in text


def test_summary_tells_what_happened_to_the_tenant() -> None:
    metrics = Metrics(CollectorRegistry())
    assert metrics.summary()["hit_rate"] is None
    for effort, mode in (("low", "plain"), ("low", "recall"), ("high", "refined"), ("none", "plain")):
        metrics.count(effort, Outcome(mode, "for a reason"), 0.1)
    for result in ("hit", "hit", "miss", "unavailable"):
        metrics.tally("recalls", result, TENANT)
    for _ in range(3):
        metrics.tally("episodes", "dropped", TENANT)
    metrics.tally("feedback", "rating", TENANT)
    metrics.tally("feedback", "comment", "other")
    assert metrics.summary() == {
        "requests": {"total": 4, "steered": 2, "by_mode": {"plain": 2, "recall": 1, "refined": 1}},
        "hit_rate": 2 / 3,
        "dropped_writes": 3,
        "refused_writes": 0,
        "feedback": {"rating": 1},
    }
