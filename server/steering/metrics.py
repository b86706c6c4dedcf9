"""What the gateway counts: for Prometheus, and as plain numbers for statistics.

Owns the collectors and their names; each constructor call below documents one. Knows nothing of how
they are served.
"""

from collections import Counter as Counts
from collections import defaultdict
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

from memory.episode import TENANT
from server.steering.outcome import Outcome

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TENTHS = tuple(tenth / 10 for tenth in range(1, 11))


class Metrics:
    """Collectors of one gateway, registered once.

    Args:
        registry: Where they are registered; `prometheus_client.REGISTRY` to be served with vLLM's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tallies: defaultdict[str, Counts[tuple[str, str]]] = defaultdict(Counts)
        """By tenant, how often each (counter, label) came. Prometheus has sums over all of them, for whoever
        scrapes needs no API key."""
        self.requests = Counter(
            "latentevolve_requests_total",
            "Requests of the steered routes by effort, what really ran and why.",
            ["effort", "mode", "reason"],
            registry=registry,
        )
        self.seconds = Histogram(
            "latentevolve_time_to_headers_seconds",
            "Time from a request's arrival to its answer's headers.",
            ["mode"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.overhead = Histogram(
            "latentevolve_overhead_seconds",
            "Time of an answered request that was not the engine's, but that of the layers around it.",
            ["effort"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.recalls = Counter(
            "latentevolve_recalls_total",
            "Recalls by result: hit, miss, or unavailable when the store did not answer.",
            ["result"],
            registry=registry,
        )
        self.similarity = Histogram(
            "latentevolve_recall_similarity",
            "Cosine of the nearest recalled episode.",
            buckets=_TENTHS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "latentevolve_stage_seconds",
            "Time per stage: key, recall, transfer, choose, search.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.reward = Histogram(
            "latentevolve_reward",
            "Q of requests that were searched for: the unsteered answer (before), the one given (after).",
            ["when"],
            buckets=_TENTHS,
            registry=registry,
        )
        self.generated_tokens = Counter(
            "latentevolve_search_generated_tokens_total",
            "Tokens that searches generated while clients waited.",
            registry=registry,
        )
        self.explorations = Counter(
            "latentevolve_explorations_total",
            "Explorations by result: remembered (given to the memory), discarded (nothing worth it), failed, "
            "interrupted (a client came; it begins again), or skipped when too many waited.",
            ["result"],
            registry=registry,
        )
        self.explored_tokens = Counter(
            "latentevolve_explore_generated_tokens_total",
            "Tokens that exploring generated, which are in no answer's usage.",
            registry=registry,
        )
        self.measurements = Counter(
            "latentevolve_measurements_total",
            "Explored prompts on which rows of the prior were compared, by result: measured, no-label where "
            "samples did not agree on one, or failed.",
            ["result"],
            registry=registry,
        )
        self.verifier_calls = Counter(
            "latentevolve_verifier_calls_total",
            "Calls of the verifier by result: scored, timeout, unreachable, status (not 200), bad-reply, or "
            "not-asked while it is left alone after failures.",
            ["result"],
            registry=registry,
        )
        self.episodes = Counter(
            "latentevolve_episodes_total",
            "Episodes by fate: stored, dropped when the queue was full, failed when the store found fault, "
            "refused when the disk was nearly full, deleted while they waited.",
            ["result"],
            registry=registry,
        )
        self.feedback = Counter(
            "latentevolve_feedback_total",
            "Feedback that was given: rating, comment, or demonstration.",
            ["metric_name"],
            registry=registry,
        )
        self.swaps = Counter(
            "latentevolve_prior_swaps_total",
            "Changes of active priors, by result: swapped, or failed when it could not be loaded.",
            ["result"],
            registry=registry,
        )

    def tally(self, counter: Literal["recalls", "episodes", "feedback"], label: str, tenant: str) -> None:
        """Count what happened to a tenant."""
        counted: Counter = getattr(self, counter)
        counted.labels(label).inc()
        self._tallies[tenant][counter, label] += 1

    def count(self, effort: str, outcome: Outcome, seconds: float, tenant: str = TENANT) -> None:
        """Count one request, what was measured of it, and how long it took until its headers."""
        self.requests.labels(effort, outcome.mode, outcome.reason).inc()
        self._tallies[tenant]["requests", outcome.mode] += 1
        self.seconds.labels(outcome.mode).observe(seconds)
        self.generated_tokens.inc(outcome.usage.generated_tokens)
        for when, reward in (("before", outcome.reward_before), ("after", outcome.reward_after)):
            if reward is not None:
                self.reward.labels(when).observe(reward)

    def summary(self, tenant: str = TENANT) -> dict[str, Any]:
        """Return a tenant's answers by mode, its hit rate of recall and what became of its episodes."""
        by_mode, recalls, fates, feedback = (
            self._tallied(tenant, counter) for counter in ("requests", "recalls", "episodes", "feedback")
        )
        answered = recalls["hit"] + recalls["miss"]
        return {
            "requests": {
                "total": by_mode.total(),
                "steered": by_mode.total() - by_mode["plain"],
                "by_mode": dict(by_mode),
            },
            "hit_rate": recalls["hit"] / answered if answered else None,
            "dropped_writes": fates["dropped"],
            "refused_writes": fates["refused"],
            "feedback": dict(feedback),
        }

    def _tallied(self, tenant: str, counter: str) -> Counts[str]:
        tallies = self._tallies[tenant] if tenant in self._tallies else Counts[tuple[str, str]]()
        return Counts({label: count for (name, label), count in tallies.items() if name == counter})
