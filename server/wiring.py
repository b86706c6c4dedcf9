"""How the gateway's parts are put together.

Owns the order in which parts open and, reversed, close, and what each gets of the settings. Knows
nothing of HTTP.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace.export import SpanExporter
from prometheus_client import CollectorRegistry

from config import folder_queue
from config.queue import NightQueue
from config.settings import Settings
from memory.api_keys import ApiKeys
from memory.atomic import sweep
from memory.episode import TENANT, LatentMemoryError
from memory.experiment import Experiments
from memory.free_space import FreeSpace
from memory.night import NightLog
from memory.open import open_store
from memory.redaction import Redaction
from memory.registry import PriorRegistry
from memory.signal import announce, listen
from memory.spaces import memory_id
from memory.state import State
from memory.store import EpisodeStore
from memory.tenants import partition
from model.engine import Engine
from model.pull import resolve_model
from server.access import Doorman
from server.gateway import Check, Gateway
from server.landscape import Landscape
from server.nights import NightCoordinator
from server.priors import Priors
from server.questions import Questions
from server.schedule import Plan, Schedule
from server.steering.active_prior import ActivePrior
from server.steering.experiment import Experiment
from server.steering.metrics import Metrics
from server.steering.pipeline import Steering
from server.steering.remember import Remember
from server.steering.store_access import StoreAccess
from server.steering.traces import TraceLog
from server.tenants import Parts, Tenants
from server.tracing import Tracing
from server.upkeep import Upkeep

logger = logging.getLogger(__name__)

DRAIN_S = 15.0
"""How long episodes may take to be written at the end."""
LOOKUP_TIMEOUT_S = 5.0
"""How long probes and routes wait for the store."""
STATS_TIMEOUT_S = 60.0
"""How long statistics do: they read the rewards of all episodes."""
LOOK_AT_TENANTS_S = 60.0
"""Between two looks which tenants there are."""
TENANTS_POLL = 5
"""How much more seldom it is looked for a new prior of a tenant other than the default one."""
WATCH_ENGINE_S = 2.0


@asynccontextmanager
async def open_gateway(
    settings: Settings, registry: CollectorRegistry, stop: Callable[[], None]
) -> AsyncIterator[Gateway]:
    """Start vLLM on the settings' model and everything around it; close all of it in reverse.

    Args:
        settings: Of the whole process.
        registry: Where metrics are registered.
        stop: Ends the process, for the engine is gone and does not come back.
    """
    model_path = await asyncio.to_thread(resolve_model, settings.model, settings.cache_dir, logger.info)
    await asyncio.to_thread(_import_engine)
    from server.engine.injection import install
    from server.engine.launch import launch
    from server.engine.self_check import run_checks

    async with AsyncExitStack() as stack:
        launched = await stack.enter_async_context(launch(settings, model_path))
        engine, app = launched.engine, launched.app
        app.state.server = _Server(stop)
        models = app.state.openai_serving_models
        gateway = await stack.enter_async_context(
            assemble(
                settings,
                registry,
                engine=engine,
                inner=app,
                served=lambda: {path.name for path in models.base_model_paths} | set(models.lora_requests),
                engine_answers=partial(_answers, engine.llm),
                checks=await run_checks(engine, launched.args),
            )
        )
        install(app.state, engine, gateway.steering.steer, gateway.steering.answered)
        await _background(stack, _watch_engine(engine.llm, stop), "engine")
        yield gateway


@asynccontextmanager
async def assemble(
    settings: Settings,
    registry: CollectorRegistry,
    *,
    engine: Engine,
    inner: Any,
    served: Callable[[], Any],
    engine_answers: Callable[[], Coroutine[Any, Any, bool]],
    checks: Sequence[Check],
    send_night: Callable[[str], None] | None = None,
    spans: SpanExporter | None = None,
) -> AsyncIterator[Gateway]:
    """Build everything around an engine and the app that serves it; tests bring a scripted engine.

    Args:
        engine: What steering asks.
        inner: App of every route that is not ours.
        served: Names that it answers to.
        engine_answers: Whether the engine is alive.
        checks: Results of the self-checks; a failed one turns steering off.
        send_night: Queues a night; None: through the queue of the settings.
        spans: Takes spans; None: who the settings name, if anybody.
    """
    known_as = await asyncio.to_thread(memory_id, settings, engine.space.own_id, (engine.space.earlier_id,))
    engine.space = replace(engine.space, known_as=known_as)
    space = engine.space.id
    data = settings.data_dir
    await asyncio.to_thread(_sweep, data, space)
    async with AsyncExitStack() as stack:
        tracing = Tracing.of(settings) if spans is None else Tracing(spans)
        stack.push_async_callback(asyncio.to_thread, tracing.close)
        room = FreeSpace(data, settings.min_free_mib)
        state = await asyncio.to_thread(State.open, settings)
        stack.push_async_callback(asyncio.to_thread, state.close)
        store: EpisodeStore = await asyncio.to_thread(open_store, settings, space, *engine.space.shape)
        stack.push_async_callback(asyncio.to_thread, store.close)
        doorman = Doorman(ApiKeys(state, room), settings)
        stack.push_async_callback(doorman.close)
        metrics = Metrics(registry)
        redact = Redaction.of(settings.memory_text, settings.memory_redact)
        traces = TraceLog(state, limit=settings.trace_limit, redact=redact)
        traces.start()
        stack.push_async_callback(traces.close)
        remember = Remember(store, limit=settings.remember_queue, metrics=metrics)
        remember.listen(traces.settle)
        upkeep = Upkeep(
            store,
            max_days=settings.memory_max_days,
            max_episodes=settings.memory_max_episodes,
            tenants=doorman.keys.named,
            forget_before=state.forget_exchanges_before,
        )
        await _background(stack, upkeep.watch(), "upkeep")
        remember.start()
        stack.push_async_callback(remember.close, DRAIN_S)
        redis_url = (
            settings.broker_url if settings.broker_url and settings.broker_url.startswith("redis") else None
        )
        queue = NightQueue(settings)

        @asynccontextmanager
        async def build(tenant: str) -> AsyncIterator[Parts]:
            part = partition(space, tenant)
            registry = PriorRegistry(data / "priors", part, state)
            prior = ActivePrior(
                registry,
                state,
                poll_s=settings.prior_poll_s * (1 if tenant == TENANT else TENANTS_POLL),
                metrics=metrics,
                tell=partial(announce, redis_url, part) if redis_url else None,
            )
            await prior.refresh()
            nights = NightCoordinator(
                space=space,
                tenant=tenant,
                store=store,
                log=NightLog(state, settings.night_limit),
                snapshots=data / "snapshots",
                room=room,
                send=send_night or queue.send,
                waiting=queue.waiting,
                schedule=Schedule(
                    Plan(settings.night_cron, settings.night_episodes),
                    part,
                    state,
                    lambda since: store.count(tenant=tenant, since=since),
                ),
                min_episodes=settings.night_min_episodes,
                min_reward=settings.night_min_reward,
            )
            async with AsyncExitStack() as watching:
                await _background(watching, prior.watch(), f"prior of {tenant}")
                await _background(watching, nights.watch(), f"nights of {tenant}")
                yield Parts(tenant, registry, Priors(registry, state), prior, nights)

        tenants = Tenants(build)
        stack.push_async_callback(tenants.close)
        remember.listen(tenants.remembered)
        own = await tenants.of(TENANT)
        if redis_url:
            await _background(stack, listen(redis_url, space, tenants.changed), "signal")
        experiment = Experiment(Experiments(state, space), settings.holdout_share)
        experiment.start()
        stack.push_async_callback(experiment.close)
        await _background(stack, experiment.watch(), "experiment")
        steering = Steering(
            engine,
            store,
            tenants.prior_of,
            remember,
            traces,
            settings,
            metrics=metrics,
            experiment=experiment,
        )
        stack.push_async_callback(steering.close)
        lookups = StoreAccess(store, timeout_s=LOOKUP_TIMEOUT_S)
        stack.callback(lookups.close)
        statistics = StoreAccess(store, timeout_s=STATS_TIMEOUT_S)
        stack.callback(statistics.close)
        landscape = Landscape(statistics, tenants.prior_of)
        stack.push_async_callback(landscape.close)
        for check in checks:
            if not check.ok:
                steering.disable(check.name)
        await _background(stack, _keep_tenants(tenants, doorman.keys), "tenants")
        if not await doorman.asks_for_keys():
            logger.warning(
                "there is no API key: %s; `latentevolve keys create` makes one",
                "whoever reaches this server may do everything"
                if settings.open_without_key
                else "only this machine is answered",
            )
        logger.info("ready: space %s, steering %s", space, "off" if steering.disabled else "on")
        yield Gateway(
            settings=settings,
            space=space,
            engine=engine,
            inner=inner,
            served=served,
            engine_answers=engine_answers,
            state=state,
            doorman=doorman,
            store=store,
            lookups=lookups,
            statistics=statistics,
            tenants=tenants,
            own=own,
            remember=remember,
            upkeep=upkeep,
            landscape=landscape,
            questions=Questions(engine),
            traces=traces,
            steering=steering,
            experiment=experiment,
            room=room,
            metrics=metrics,
            tracing=tracing,
            checks=tuple(checks),
        )


async def _keep_tenants(tenants: Tenants, keys: ApiKeys) -> None:
    """Look after the nights of tenants that ask for nothing, too, and of none that cannot any more."""
    while True:
        try:
            await tenants.keep(await asyncio.to_thread(keys.tenants))
        except LatentMemoryError as error:
            logger.warning("nights of tenants begin when they ask for something: %s", error)
        except Exception:
            logger.exception("tenants are not looked after")
        await asyncio.sleep(LOOK_AT_TENANTS_S)


def _import_engine() -> None:
    """Take the seconds that the engine's libraries need where they hold up no probe."""
    from server.engine import injection, launch, self_check  # noqa: F401


def _sweep(data: Path, space: str) -> None:
    """Delete what processes that died were writing."""
    nights = data / "nights"
    priors = (data / "priors").glob(f"{partition(space, '*')}/")  # of tenants
    folders = [data, data / "snapshots", data / "priors" / space, *priors, *nights.glob("*/")]
    swept = sum(sweep(folder) for folder in folders) + folder_queue.sweep(data / "queue")
    if swept:
        logger.info("%d unfinished files and folders of earlier processes are deleted", swept)


class _Server:
    """What vLLM's error handlers expect of uvicorn's server: they set `should_exit` once the engine died."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    @property
    def should_exit(self) -> bool:
        return False

    @should_exit.setter
    def should_exit(self, wanted: bool) -> None:
        if wanted:
            self._stop()


async def _answers(llm: Any) -> bool:
    try:
        await llm.check_health()
    except Exception as error:  # vLLM's EngineDeadError, not importable without vLLM
        logger.warning("the engine does not answer: %s", error)
        return False
    return True


async def _watch_engine(llm: Any, stop: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(WATCH_ENGINE_S)
        if llm.errored and not llm.is_running:
            logger.critical("the engine is gone")
            return stop()


async def _background(stack: AsyncExitStack, work: Coroutine[Any, Any, None], name: str) -> None:
    """Run `work` until the stack closes."""
    task = asyncio.create_task(work, name=name)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)
