"""One night: snapshot → dataset → train → evidence → publish.

Owns the order, the states of the record and what happens to errors. Each stage is its own module; this
one knows no queue, so that a night can be run by anybody who has its id.

A night may be run again after a crash: a finished one is left as it is, a trained one goes on from its
checkpoints, a published one is not published twice.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from config.settings import Settings
from memory.episode import LatentMemoryError
from memory.evidence import PROOF, Evidence
from memory.free_space import FreeSpace
from memory.night import NightLog, NightRecord, UnknownNightError
from memory.night import State as NightState
from memory.prior import Prior, Row
from memory.registry import PriorRegistry, RegistryError
from memory.signal import announce
from memory.snapshot import SnapshotError
from memory.spaces import memory_id
from memory.state import State
from memory.tenants import parted
from model.engine import Engine, EngineError
from worker.checkpoint import reached_step
from worker.dataset import Dataset, load_by_settings
from worker.engine import EngineFactory, open_engine
from worker.errors import (
    ConsolidationError,
    NightBusyError,
    NightCrashedError,
    NightOverruledError,
    TooFewEpisodesError,
)
from worker.journal import Journal
from worker.judge import Judged, judge, rows
from worker.lock import night_lock
from worker.manifest import NIGHT, manifest_of
from worker.train import Recipe, train

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""A night that kills its worker, by memory say, is not tried for ever."""
LOOK_S = 1.0
"""How often a night looks whether it has been ended, whatever it is doing."""
GIVE_WAY_S = 120.0
"""How long a night that was ended may hold up a later one until it has stopped."""


async def run_night(
    night_id: str, settings: Settings, engine_factory: EngineFactory = open_engine
) -> NightRecord:
    """Run the night of that id and return its record, which says how it ended.

    A night that has ended, or that another process is working on, is left alone.

    Raises:
        UnknownNightError: there is no such night.
    """
    state = await asyncio.to_thread(State.open, settings)
    with state:
        return await _run(night_id, settings, state, engine_factory)


async def _run(night_id: str, settings: Settings, state: State, engine_factory: EngineFactory) -> NightRecord:
    log = NightLog(state)
    record = log.get(night_id)
    if record is None:
        raise UnknownNightError(f"there is no night {night_id!r}")
    journal = Journal(log, record)
    night = _Night(settings, state, journal, engine_factory)
    if record.ended:
        logger.info("night %s has already ended as %s", night_id, record.state)
        night.clear()
        return record
    try:
        with ExitStack() as held:
            await _take_lock(held, night)
            held.enter_context(journal.heartbeat())
            async with AsyncExitStack() as opened:
                await _attempt(night, opened)
    except NightBusyError as error:
        if error.holder != night_id:
            journal.change(state="skipped", message=str(error))
            night.clear()
    except NightOverruledError as error:
        logger.warning("night %s stops: %s", night_id, error)
        known = log.get(night_id)
        if known is None or known.ended:  # else another worker is at it
            night.clear()
    return log.get(night_id) or journal.record


async def _take_lock(held: ExitStack, night: "_Night") -> None:
    """Take the lock of the space, to be given back with `held`; a night that has ended gets time to let go.

    Raises:
        NightBusyError: another night holds it, or another worker this one.
        NightOverruledError: this night was ended meanwhile.
    """
    record, deadline = night.journal.record, time.monotonic() + GIVE_WAY_S
    while True:
        try:
            held.enter_context(night_lock(night.state, record.space, record.id, night.journal.overrule))
            return
        except NightBusyError as error:
            holder = night.log.get(error.holder)
            if holder is None or not holder.ended or time.monotonic() > deadline:
                raise
        await asyncio.sleep(LOOK_S)
        night.journal.look()


@dataclass(frozen=True)
class _Known:
    """The active prior, as a night meets it."""

    alive: Prior | None = None
    """What of it is not retired."""
    serving: Prior | None = None
    """What of that serves."""
    evidence: Mapping[str, Evidence] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.alive.rows if self.alive else ()


@dataclass(frozen=True)
class _Night:
    settings: Settings
    state: State
    journal: Journal
    engine_factory: EngineFactory

    @property
    def folder(self) -> Path:
        """Where its checkpoint is kept."""
        return self.settings.data_dir / "nights" / self.journal.record.id

    @property
    def snapshot(self) -> Path:
        """Where the gateway has put the episodes."""
        return self.settings.data_dir / "snapshots" / self.journal.record.id

    def clear(self) -> None:
        """Delete both: a night that has ended is never run again."""
        for folder in (self.folder, self.snapshot):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def log(self) -> NightLog:
        return NightLog(self.state)

    @property
    def registry(self) -> PriorRegistry:
        folder, space = self.settings.data_dir / "priors", self.journal.record.space
        return PriorRegistry(folder, space, self.state, self.room)

    @property
    def room(self) -> FreeSpace:
        return FreeSpace(self.settings.data_dir, self.settings.min_free_mib)


async def _attempt(night: _Night, opened: AsyncExitStack) -> None:
    journal = night.journal
    try:
        _count_attempt(night)
        await _unless_overruled(journal, _consolidate(night, opened))
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        # It was stopped on purpose, and goes on later. Now: an engine in a call takes long to close.
        night.log.forget_attempts(journal.record.id)
        raise
    except NightOverruledError:
        raise
    except TooFewEpisodesError as error:
        journal.change(state="skipped", message=str(error))
    except (ConsolidationError, LatentMemoryError, EngineError, OSError, MemoryError) as error:
        logger.exception("night %s failed", journal.record.id)
        journal.change(state="failed", error=f"{type(error).__name__}: {error}")
    except Exception as error:
        logger.exception("night %s failed unexpectedly", journal.record.id)
        journal.change(
            state="failed",
            error=f"unexpected {type(error).__name__} in phase {journal.record.phase}: {error}",
        )
    night.clear()


async def _unless_overruled(journal: Journal, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; stop it, whatever it waits for, once somebody else has ended or taken the night.

    Raises:
        NightOverruledError: that is so.
    """
    stopped = asyncio.timeout(None)

    async def watch() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await asyncio.to_thread(journal.look)
            except NightOverruledError:
                stopped.reschedule(0)
                return

    try:
        async with stopped:
            watching = asyncio.create_task(watch())
            try:
                await work
            finally:
                watching.cancel()
    except TimeoutError:
        if not stopped.expired():
            raise
        journal.look()


async def _consolidate(night: _Night, opened: AsyncExitStack) -> None:
    settings, journal = night.settings, night.journal
    journal.change(state="running", phase="snapshot", done=0, total=1, message="reading the snapshot")
    published = _published(night)
    if published is not None:
        _finish(night, published)
        return
    if not night.snapshot.is_dir():
        raise SnapshotError(f"there is no snapshot {night.snapshot}")
    journal.change(phase="load", done=0, total=1, message=f"loading {settings.model}")
    engine = await asyncio.to_thread(night.engine_factory, settings)
    opened.push_async_callback(engine.close)
    await asyncio.to_thread(_take_space, engine, settings)
    journal.change(phase="dataset", done=0, total=1, message="reading episodes, deciding labels")
    dataset = await load_by_settings(night.snapshot, engine, parted(journal.record.space)[0], settings)
    known = _active(night)
    journal.change(parent=known.alive.version if known.alive else None)
    rows, manifest = await _learn(night, engine, dataset, known)
    journal.change(phase="publish", done=0, total=1, message="publishing")
    version = await asyncio.to_thread(night.registry.publish, rows, manifest)
    _finish(night, night.registry.load(version).manifest)


async def _learn(
    night: _Night, engine: Engine, dataset: Dataset, known: _Known
) -> tuple[list[Row], dict[str, Any]]:
    """Train a latent per cluster, judge each, and return the version's rows and its manifest."""
    settings, journal = night.settings, night.journal
    recipes = [Recipe.of(settings, len(fold.train)) for fold in dataset.folds]
    steps = sum(recipe.steps for recipe in recipes)
    journal.change(phase="train", done=0, total=steps, message=f"{len(dataset.examples)} examples")
    trainings, done = [], 0
    for fold, recipe in zip(dataset.folds, recipes, strict=True):
        trained = await train(
            engine,
            dataset,
            fold,
            recipe,
            checkpoint=night.folder / f"{fold.name}.safetensors",
            room=night.room,
            progress=partial(_tell, journal, done, steps, fold.name),
        )
        trainings.append((fold, trained))
        done += recipe.steps
    journal.change(phase="evidence", done=0, total=1, message="comparing with what is served now")
    judged = await judge(
        engine, dataset, trainings, known.serving, seed=settings.night_seed, progress=journal.progress
    )
    new, floor = rows(dataset, trainings[-1][1], known.serving, seed=settings.night_seed)
    carried = _carried(known, new, judged)
    manifest = manifest_of(journal.record, settings, dataset, trainings, judged, carried, known.alive, floor)
    return [*new, *carried], manifest


def _tell(journal: Journal, before: int, total: int, name: str, done: int, _: int, message: str) -> None:
    which = "" if name == "all" else f"{name} half, "
    journal.progress(before + done, total, f"{which}{message}")


def _carried(known: _Known, new: Sequence[Row], judged: Sequence[Judged]) -> list[Row]:
    """Return the rows that go on beside the new ones.

    One that serves does until proven ones take over all that it covers. Of those on trial that their evidence
    speaks for the most telling one goes on being measured: a gain over what serves already is small, and were
    each night to begin anew, few traffic would never prove it. Any other row gives way to new ones.
    """
    proven = [row for row, found in zip(new, judged, strict=True) if found.evidence.standing == "serves"]
    serves = known.serving.rows if known.serving else ()
    carried: list[Row] = []
    for row in sorted(known.rows, key=lambda row: known.evidence[row.id].e_value, reverse=True):
        evidence = known.evidence[row.id]
        others: Sequence[Row] = new
        if evidence.standing == "serves":
            others = proven
        elif evidence.e_value > 1:
            waiting = [one for one in carried if known.evidence[one.id].standing == "on trial"]
            others = [*proven, *waiting, *(one for one in serves if one.born > row.born)]
        if not _take_over(others, row):
            carried.append(row)
    return [row for row in known.rows if row in carried]


def _take_over(others: Sequence[Row], row: Row) -> bool:
    """Whether other rows speak wherever a row does."""
    return all(any(one.coverage.covers(centroid) for one in others) for centroid in row.coverage.centroids)


def _finish(night: _Night, manifest: Mapping[str, Any]) -> None:
    """Hand the evidence over, make the version the active one, and end the night.

    What serves is for the evidence to say, row by row. What an operator has chosen stays until it is
    released.
    """
    settings, version = night.settings, str(manifest["version"])
    space = night.journal.record.space
    clusters = list(manifest["evidence"])
    for cluster in clusters:
        pairs = [(str(prompt), float(difference)) for prompt, difference in cluster["differences"]]
        night.state.add_outcomes(*parted(space), f"{version}/{cluster['row']}", pairs, "night")
    standings = [str(cluster["standing"]) for cluster in clusters]
    reason = "; ".join(_said(f"{version}/{cluster['row']}", cluster) for cluster in clusters)
    if not night.registry.activate_unless_pinned(version):
        chosen = night.registry.active() or "no prior"
        reason += (
            f"; {chosen} was chosen by an operator and stays active: `latentevolve priors activate {version}`"
            " takes this one, `latentevolve priors release` lets nights choose again"
        )
    elif settings.broker_url and settings.broker_url.startswith("redis"):
        announce(settings.broker_url, space)
    state_of_night: NightState = "on trial"
    if "serves" in standings:
        state_of_night = "promoted"
    elif all(standing == "retired" for standing in standings):
        state_of_night = "refused"
    night.journal.change(
        state=state_of_night,
        phase="publish",
        done=1,
        total=1,
        version=version,
        parent=manifest["parent"],
        evidence={
            "clusters": [{k: v for k, v in cluster.items() if k != "differences"} for cluster in clusters]
        },
        message=reason,
    )


def _said(row: str, cluster: Mapping[str, Any]) -> str:
    """Return one cluster's evidence as a sentence. What has served once may have less than proof again."""
    if not cluster["n"]:
        return f"{row} is on trial: nothing could judge it yet"
    standing = cluster["standing"]
    evidence = f"{min(cluster['e_against' if standing == 'retired' else 'e_value'], 1e6):.3g}"
    proof = (
        f"evidence {evidence} of {PROOF:g}" if standing == "on trial" else f"proven, evidence now {evidence}"
    )
    return f"{row} {_STANDINGS[standing]}: {cluster['mean']:+.2f} on {cluster['n']} prompts, {proof}"


_STANDINGS = {"serves": "serves", "on trial": "is on trial", "retired": "is retired"}


def _published(night: _Night) -> dict[str, Any] | None:
    """Return the manifest that this night has published before it crashed."""
    manifests = night.registry.versions()
    return next((manifest for manifest in manifests if manifest.get(NIGHT) == night.journal.record.id), None)


def _take_space(engine: Engine, settings: Settings) -> None:
    """Let the engine's space be known by the id under which the gateway keeps its memories."""
    known_as = memory_id(settings, engine.space.own_id, (engine.space.earlier_id,))
    engine.space = replace(engine.space, known_as=known_as)


def _active(night: _Night) -> _Known:
    """Return what is known of the active prior."""
    registry = night.registry
    try:
        version = registry.active()
        prior = registry.load(version) if version else None
    except RegistryError as error:
        logger.warning("the active prior cannot be read and is not compared with: %s", error)
        return _Known()
    if prior is None:
        return _Known()
    evidence = night.state.evidence(prior)
    alive = prior.only([row for row in evidence if evidence[row].standing != "retired"])
    serving = alive.only([row for row in evidence if evidence[row].standing == "serves"])
    return _Known(alive, serving, evidence)


def _count_attempt(night: _Night) -> None:
    """Note that the night is begun once more; only attempts that get no further count.

    Raises:
        NightCrashedError: it died too often at the same place.
    """
    reached = sum(map(reached_step, night.folder.glob("*.safetensors")))
    attempts = night.log.attempt(night.journal.record.id, reached) - 1
    if attempts >= MAX_ATTEMPTS:
        raise NightCrashedError(f"the worker died {attempts} times in this night; is there enough memory?")
