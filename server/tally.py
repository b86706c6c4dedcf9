"""How many requests were answered, and how.

Owns the counters of answers, shown both in Prometheus' format and as plain numbers. Knows nothing
of where they are shown.
"""

import threading
from collections import Counter
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as PrometheusCounter

from server.steering.call import Effort, Outcome

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class RequestTally:
    """Counts of the steered routes' answers since the gateway started. Thread-safe."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._by_mode: Counter[str] = Counter()
        self._requests = PrometheusCounter(
            "latentevolve_answers",
            "Answers of the steered routes by effort, mode and reason.",
            ["effort", "mode", "reason"],
            registry=registry,
        )
        self._seconds = Histogram(
            "latentevolve_seconds_to_headers",
            "Seconds from a request's arrival to its answer's headers.",
            ["mode"],
            buckets=_BUCKETS_S,
            registry=registry,
        )

    def count(self, effort: Effort, outcome: Outcome, seconds: float) -> None:
        """Count one answer, which took `seconds` until its headers."""
        with self._lock:
            self._by_mode[outcome.mode] += 1
        self._requests.labels(effort, outcome.mode, outcome.reason).inc()
        self._seconds.labels(outcome.mode).observe(seconds)

    def summary(self) -> dict[str, Any]:
        """Return all answers, those with a latent, and how many there were per mode."""
        with self._lock:
            total = sum(self._by_mode.values())
            return {
                "total": total,
                "steered": total - self._by_mode["plain"],
                "by_mode": dict(self._by_mode),
            }

    def close(self) -> None:
        """Leave the Prometheus registry."""
        self._registry.unregister(self._requests)
        self._registry.unregister(self._seconds)
