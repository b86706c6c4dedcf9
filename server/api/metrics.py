"""GET /metrics: vLLM's metrics and ours, from one Prometheus registry.

Owns the gauges that are read from the running parts at each scrape; counters live in
server/steering/metrics.py. vLLM registers its own in the process's default registry.
"""

import asyncio
import logging
from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from memory.episode import StoreUnavailableError
from server.gateway import Readiness

logger = logging.getLogger(__name__)
router = APIRouter(tags=["metrics"])


class GatewayCollector(Collector):
    """Reads the state of the gateway at each scrape, but for the episodes, which are counted before."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._episodes: int | None = None

    async def count_episodes(self) -> None:
        """Ask the store for what the next scrape shows; it shows nothing where it does not answer."""
        gateway = self._readiness.gateway
        self._episodes = None
        if gateway is not None:
            try:
                self._episodes = await gateway.lookups.call(lambda store: store.count())
            except StoreUnavailableError as error:
                logger.warning("episodes are not counted: %s", error)

    def describe(self) -> list[Metric]:
        """Return nothing: what is collected depends on whether the gateway runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        gateway = self._readiness.gateway
        yield GaugeMetricFamily(
            "latentevolve_ready", "Whether the gateway has started.", value=float(gateway is not None)
        )
        if gateway is None:
            return
        yield GaugeMetricFamily(
            "latentevolve_steering",
            "Whether every self-check passed.",
            value=float(gateway.steering.disabled is None),
        )
        yield GaugeMetricFamily(
            "latentevolve_pending_writes", "Episodes waiting to be stored.", value=gateway.remember.pending
        )
        yield GaugeMetricFamily(
            "latentevolve_lost_traces",
            "Traces since the start that could not be written.",
            value=gateway.traces.lost,
        )
        if self._episodes is not None:
            yield GaugeMetricFamily(
                "latentevolve_stored_episodes", "Episodes in the served space.", value=self._episodes
            )


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return every metric in Prometheus' text format."""
    registry: CollectorRegistry = request.app.state.metrics
    await request.app.state.collector.count_episodes()
    return Response(await asyncio.to_thread(generate_latest, registry), media_type=CONTENT_TYPE_LATEST)
