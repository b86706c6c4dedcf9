"""GET /metrics: vLLM's metrics and ours, from one Prometheus registry.

Owns the gauges that are read from the running parts at each scrape; counters live in
server/steering/metrics.py. vLLM registers its own in the process's default registry.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import get_args

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from memory.episode import TENANT, LatentMemoryError, StoreUnavailableError
from memory.night import NightLog, Tally
from memory.night import State as NightState
from server.gateway import Gateway, Readiness
from server.steering.experiment import Known

logger = logging.getLogger(__name__)
router = APIRouter(tags=["metrics"])


class GatewayCollector(Collector):
    """Reads the state of the gateway at each scrape, but for what blocks, which is asked for before."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._episodes: int | None = None
        self._nights: Sequence[Tally] | None = None
        self._overdue: datetime | None = None

    async def look(self) -> None:
        """Ask store and state for what the next scrape shows; it shows nothing of what does not answer."""
        gateway = self._readiness.gateway
        episodes, nights, overdue = None, None, None
        if gateway is not None:
            try:
                episodes = await gateway.lookups.call(lambda store: store.count())
            except StoreUnavailableError as error:
                logger.warning("episodes are not counted: %s", error)
            try:
                tallies = await asyncio.to_thread(NightLog(gateway.state).tallies)
                nights = [tally for tally in tallies if tally.space == gateway.space]
                overdue = await gateway.nights.overdue()
            except LatentMemoryError as error:
                logger.warning("nights are not counted: %s", error)
        # At once: another scrape may be looking, too.
        self._episodes, self._nights, self._overdue = episodes, nights, overdue

    def describe(self) -> list[Metric]:
        """Return nothing: what is collected depends on whether the gateway runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what there is."""
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
            "latentevolve_pending_explorations",
            "Prompts waiting to be explored.",
            value=gateway.steering.explorer.waiting,
        )
        yield GaugeMetricFamily(
            "latentevolve_tenants_off",
            "Tenants of whom nothing is steered, because the evidence or an operator has turned that off.",
            value=gateway.experiment.tenants_off,
        )
        yield from _experiment(gateway.experiment.known(TENANT))
        yield CounterMetricFamily(
            "latentevolve_lost_traces",
            "Traces since the start that could not be written.",
            value=gateway.traces.lost,
        )
        if self._episodes is not None:
            yield GaugeMetricFamily(
                "latentevolve_stored_episodes", "Episodes in the served space.", value=self._episodes
            )
        yield from _disk(gateway)
        if self._nights is not None:
            yield from _nights(self._nights)
            yield GaugeMetricFamily(
                "latentevolve_night_overdue_timestamp_seconds",
                "The scheduled time that no night was started for until now; nothing where there is none.",
                value=None if self._overdue is None else self._overdue.timestamp(),
            )


def _experiment(known: Known) -> Iterator[Metric]:
    """Yield what both arms of the default tenant are worth: others would be too many to show."""
    if not known.share:
        return
    units = GaugeMetricFamily(
        "latentevolve_experiment_units",
        "Users of the default tenant, else prompts, that are compared, by metric and arm.",
        labels=["metric", "arm"],
    )
    means = GaugeMetricFamily(
        "latentevolve_experiment_mean",
        "Means of the arms: ratings and agreement from 0 to 1, tokens, and latency in seconds.",
        labels=["metric", "arm"],
    )
    differences = GaugeMetricFamily(
        "latentevolve_experiment_difference",
        "Mean of the steered arm less that of the other, and the bounds of its 95 % confidence sequence.",
        labels=["metric", "bound"],
    )
    harms = GaugeMetricFamily(
        "latentevolve_experiment_harm_e_value",
        "E-value that steering harms, of metrics that decide; steering goes off at 20.",
        labels=["metric"],
    )
    for metric, one in known.comparisons.items():
        for arm, found in one.arms.items():
            units.add_metric([metric, arm], found.n)
            if found.n:
                means.add_metric([metric, arm], found.mean)
        bounds = zip(("lower", "upper"), one.interval or (), strict=False)
        for bound, value in (("mean", one.difference), *bounds):
            if value is not None:
                differences.add_metric([metric, bound], value)
        if one.evidence is not None:
            harms.add_metric([metric], one.evidence.e_against)
    yield from (units, means, differences, harms)


def _disk(gateway: Gateway) -> Iterator[Metric]:
    try:
        free, size = gateway.room.free(), gateway.room.size()
    except OSError as error:
        logger.warning("the disk's free space is not known: %s", error)
        return
    yield GaugeMetricFamily(
        "latentevolve_data_free_bytes", "Free space on the disk of the data folder.", value=free
    )
    yield GaugeMetricFamily("latentevolve_data_size_bytes", "Size of that disk.", value=size)
    yield GaugeMetricFamily(
        "latentevolve_data_floor_bytes",
        "Free space below which no episode is stored; 0: never looked at.",
        value=gateway.room.floor,
    )


def _nights(nights: Sequence[Tally]) -> Iterator[Metric]:
    """Yield how many nights of the served space there are in each state, and when the last of each ended."""
    known = {tally.state: tally for tally in nights}
    by_state = GaugeMetricFamily(
        "latentevolve_nights", "Nights of the served space on record, by state.", labels=["state"]
    )
    ended = GaugeMetricFamily(
        "latentevolve_night_end_timestamp_seconds",
        "When the last night that ended so has ended, by state.",
        labels=["state"],
    )
    for state in get_args(NightState):
        tally = known.get(state)
        by_state.add_metric([state], tally.count if tally else 0)
        if tally and tally.last_end:
            ended.add_metric([state], tally.last_end.timestamp())
    yield by_state
    yield ended


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return every metric in Prometheus' text format."""
    registry: CollectorRegistry = request.app.state.metrics
    await request.app.state.collector.look()
    return Response(await asyncio.to_thread(generate_latest, registry), media_type=CONTENT_TYPE_LATEST)
