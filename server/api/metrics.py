"""GET /metrics: vLLM's metrics and ours, from one Prometheus registry, and gauges of what is now.

Owns the gauges, which are read from the running parts at each scrape; counters live in
server/steering/metrics.py, and vLLM registers its own in the process's default registry. The route is public,
so it shows what the default tenant has; whoever may see all tenants gets each of those that keys name.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import get_args

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from memory.episode import TENANT, LatentMemoryError, StoreUnavailableError
from memory.evidence import Standing
from memory.night import NightLog, Tally
from memory.night import State as NightState
from memory.tenants import partition
from server.api.auth import operates
from server.api.deps import ReadinessDep
from server.gateway import Gateway
from server.steering.experiment import Known
from server.tenants import Parts

logger = logging.getLogger(__name__)
router = APIRouter(tags=["metrics"])


@router.get("/metrics")
async def metrics(request: Request, readiness: ReadinessDep) -> Response:
    """Return every metric in Prometheus' text format."""
    counted: CollectorRegistry = request.app.state.metrics
    now = CollectorRegistry()  # of this scrape alone: another one may see others
    now.register(_Known([family async for family in _seen(request, readiness.gateway)]))
    text = await asyncio.to_thread(lambda: generate_latest(counted) + generate_latest(now))
    return Response(text, media_type=CONTENT_TYPE_LATEST)


class _Known(Collector):
    """Families that are there already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def _seen(request: Request, gateway: Gateway | None) -> AsyncIterator[Metric]:
    """Yield what there is; nothing of what does not answer."""
    yield _gauge("latentevolve_ready", "Whether the gateway has started.", gateway is not None)
    if gateway is None:
        return
    for family in _of_the_gateway(gateway):
        yield family
    try:
        episodes = await gateway.lookups.call(lambda store: store.count())
        yield _gauge("latentevolve_stored_episodes", "Episodes in the served space.", episodes)
    except StoreUnavailableError as error:
        logger.warning("episodes are not counted: %s", error)
    try:
        shown = [TENANT]
        if await operates(request, gateway):
            shown = await asyncio.to_thread(gateway.doorman.keys.tenants)
        for family in _experiments({tenant: gateway.experiment.known(tenant) for tenant in shown}):
            yield family
        parts = [one for tenant in shown if (one := await _parts(gateway, tenant)) is not None]
        for family in _priors(parts):
            yield family
        for family in await asyncio.to_thread(_nights, gateway, parts):
            yield family
    except LatentMemoryError as error:
        logger.warning("priors and nights are not counted: %s", error)


async def _parts(gateway: Gateway, tenant: str) -> Parts | None:
    try:
        return await gateway.tenants.of(tenant)
    except Exception as error:
        logger.warning("priors and nights of tenant %s are not counted: %s", tenant, error)
        return None


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=float(value))


def _of_the_gateway(gateway: Gateway) -> Iterator[Metric]:
    yield _gauge(
        "latentevolve_steering", "Whether every self-check passed.", gateway.steering.disabled is None
    )
    yield _gauge("latentevolve_pending_writes", "Episodes waiting to be stored.", gateway.remember.pending)
    yield _gauge(
        "latentevolve_pending_explorations",
        "Prompts waiting to be explored.",
        gateway.steering.explorer.waiting,
    )
    yield _gauge(
        "latentevolve_tenants_off",
        "Tenants of whom nothing is steered, because the evidence or an operator has turned that off.",
        gateway.experiment.tenants_off,
    )
    yield CounterMetricFamily(
        "latentevolve_lost_traces",
        "Traces since the start that could not be written.",
        value=gateway.traces.lost,
    )
    yield from _disk(gateway)


def _priors(everybody: Sequence[Parts]) -> Iterator[Metric]:
    """Yield which version of each tenant is active, and where its rows stand."""
    active = GaugeMetricFamily(
        "latentevolve_active_prior",
        "1 for the version that is active; `none` without a prior.",
        labels=["tenant", "version"],
    )
    rows = GaugeMetricFamily(
        "latentevolve_prior_rows",
        "Rows of the active version by standing: on trial, serves, or retired.",
        labels=["tenant", "standing"],
    )
    for parts in everybody:
        serving = parts.prior.serving()
        active.add_metric([parts.tenant, serving.whole.version if serving else "none"], 1)
        counts = Counter(one.standing for one in serving.evidence.values()) if serving else Counter()
        for standing in get_args(Standing):
            rows.add_metric([parts.tenant, standing], counts[standing])
    yield active
    yield rows


def _experiments(everybody: Mapping[str, Known]) -> Iterator[Metric]:
    """Yield what both arms of each tenant are worth, where there is an experiment."""
    units = GaugeMetricFamily(
        "latentevolve_experiment_units",
        "Users, else prompts, that are compared, by metric and arm.",
        labels=["tenant", "metric", "arm"],
    )
    means = GaugeMetricFamily(
        "latentevolve_experiment_mean",
        "Means of the arms: ratings and agreement from 0 to 1, tokens, and latency in seconds.",
        labels=["tenant", "metric", "arm"],
    )
    differences = GaugeMetricFamily(
        "latentevolve_experiment_difference",
        "Mean of the steered arm less that of the other, and the bounds of its 95 % confidence sequence.",
        labels=["tenant", "metric", "bound"],
    )
    harms = GaugeMetricFamily(
        "latentevolve_experiment_harm_e_value",
        "E-value that steering harms, of metrics that decide; steering goes off at 20.",
        labels=["tenant", "metric"],
    )
    for tenant, known in everybody.items():
        for metric, one in known.comparisons.items() if known.share else ():
            for arm, found in one.arms.items():
                units.add_metric([tenant, metric, arm], found.n)
                if found.n:
                    means.add_metric([tenant, metric, arm], found.mean)
            bounds = zip(("lower", "upper"), one.interval or (), strict=False)
            for bound, value in (("mean", one.difference), *bounds):
                if value is not None:
                    differences.add_metric([tenant, metric, bound], value)
            if one.evidence is not None:
                harms.add_metric([tenant, metric], one.evidence.e_against)
    yield from (units, means, differences, harms)


def _disk(gateway: Gateway) -> Iterator[Metric]:
    try:
        free, size = gateway.room.free(), gateway.room.size()
    except OSError as error:
        logger.warning("the disk's free space is not known: %s", error)
        return
    yield _gauge("latentevolve_data_free_bytes", "Free space on the disk of the data folder.", free)
    yield _gauge("latentevolve_data_size_bytes", "Size of that disk.", size)
    yield _gauge(
        "latentevolve_data_floor_bytes",
        "Free space below which no episode is stored; 0: never looked at.",
        gateway.room.floor,
    )


def _nights(gateway: Gateway, everybody: Sequence[Parts]) -> list[Metric]:
    """Return how many nights of each tenant are in each state, when the last of each ended, and what is late.

    Raises:
        StateUnavailableError, NoRoomError: the state cannot be read, or written.
    """
    by_state = GaugeMetricFamily(
        "latentevolve_nights",
        "Nights of the served space on record, by state.",
        labels=["tenant", "state"],
    )
    ended = GaugeMetricFamily(
        "latentevolve_night_end_timestamp_seconds",
        "When the last night that ended so has ended, by state.",
        labels=["tenant", "state"],
    )
    late = GaugeMetricFamily(
        "latentevolve_night_overdue_timestamp_seconds",
        "The scheduled time that no night was started for until now; nothing where there is none.",
        labels=["tenant"],
    )
    tallies: dict[str, dict[NightState, Tally]] = {}
    for tally in NightLog(gateway.state).tallies():
        tallies.setdefault(tally.space, {})[tally.state] = tally
    for parts in everybody:
        known = tallies.get(partition(gateway.space, parts.tenant), {})
        for state in get_args(NightState):
            one = known.get(state)
            by_state.add_metric([parts.tenant, state], one.count if one else 0)
            if one and one.last_end:
                ended.add_metric([parts.tenant, state], one.last_end.timestamp())
        overdue = parts.nights.overdue([tally.last_scheduled for tally in known.values()])
        if overdue is not None:
            late.add_metric([parts.tenant], overdue.timestamp())
    return [by_state, ended, late]
