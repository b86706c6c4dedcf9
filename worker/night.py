"""One night: snapshot → load → train → gate → publish (ADR 0004).

Owns the order, the states of the record and what happens to errors. Each stage is its own module; this
one knows no queue, so that a night can be run by anybody who has its id.

A night may be run again after a crash: a finished one is left as it is, a trained one goes on from its
checkpoint, a published one is not published twice.
"""

import asyncio
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from config.settings import Settings
from memory.episode import Episode, LatentMemoryError
from memory.free_space import FreeSpace
from memory.night import NightLog, NightRecord, UnknownNightError
from memory.prior import Prior, PriorNetwork
from memory.registry import PriorRegistry, RegistryError
from memory.signal import announce
from memory.snapshot import read_snapshot
from memory.spaces import memory_id
from memory.state import State
from model.engine import Engine, EngineError, PlacementError
from worker.checkpoint import reached_step
from worker.contestants import Candidate, Recall
from worker.engine import EngineFactory, open_engine
from worker.errors import (
    ConsolidationError,
    NightBusyError,
    NightCrashedError,
    NightOverruledError,
    SpaceMismatchError,
    TooFewEpisodesError,
)
from worker.journal import Journal
from worker.lock import night_lock
from worker.manifest import NIGHT, manifest_of, trained_prompts
from worker.replay import answer_of
from worker.split import Split, split
from worker.training import Recipe, Trained, train
from worker.verdict import decide

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""A night that kills its worker, by memory say, is not tried for ever."""


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
        with night_lock(state, record.space, night_id, journal.overrule), journal.heartbeat():
            await _attempt(night)
    except NightBusyError as error:
        if error.holder != night_id:
            journal.change(state="skipped", message=str(error))
            night.clear()
    except NightOverruledError as error:
        logger.warning("night %s stops: %s", night_id, error)
    return log.get(night_id) or journal.record


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
    def checkpoint(self) -> Path:
        """Where its training stands."""
        return self.folder / "checkpoint.safetensors"

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


async def _attempt(night: _Night) -> None:
    journal = night.journal
    try:
        _count_attempt(night)
        await _consolidate(night)
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        night.log.forget_attempts(journal.record.id)  # it was stopped on purpose, and goes on later
        raise
    except NightOverruledError:
        known = night.log.get(journal.record.id)
        if known is None or known.ended:  # else another worker is at it
            night.clear()
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


async def _consolidate(night: _Night) -> None:
    settings, journal = night.settings, night.journal
    journal.change(state="running", phase="snapshot", done=0, total=1, message="reading the snapshot")
    published = _published(night)
    if published is not None:
        _finish(night, published)
        return
    episodes = await asyncio.to_thread(_episodes, night)
    journal.change(phase="load", done=0, total=1, message=f"loading {settings.model}")
    engine = await asyncio.to_thread(night.engine_factory, settings)
    try:
        await asyncio.to_thread(_take_space, engine, settings)
        _check_space(engine, journal.record.space, episodes)
        episodes = [episode for episode in episodes if _fits(engine, episode)]
        active = _active(night.registry)
        journal.change(parent=active.version if active else None)
        sides = split(
            episodes,
            holdout_share=settings.night_holdout,
            seed=settings.night_seed,
            seen=trained_prompts(active),
        )
        manifest, candidate = await _learn(night, engine, sides, active)
    finally:
        await engine.close()
    journal.change(phase="publish", done=0, total=1, message="publishing")
    version = await asyncio.to_thread(
        night.registry.publish, candidate.network, candidate.competence, manifest
    )
    _finish(night, {**manifest, "version": version})


async def _learn(
    night: _Night, engine: Engine, sides: Split, active: Prior | None
) -> tuple[dict[str, Any], Candidate]:
    """Train a candidate, judge it, and return its manifest and itself."""
    settings, journal = night.settings, night.journal
    # Weights that have seen the hold-out would be praised for remembering it.
    start = active if active is not None and sides.unseen and _same_shape(active, engine) else None
    recipe = Recipe.of(settings, len(sides.train), goes_on=start is not None)
    network = _network(engine, start, recipe.seed)
    journal.change(phase="train", done=0, total=recipe.steps, message=f"{len(sides.train)} episodes")
    trained: Trained = await train(
        engine,
        network,
        sides.train,
        sides.validation,
        recipe,
        checkpoint=night.checkpoint,
        room=night.room,
        progress=journal.progress,
    )
    journal.change(phase="gate", done=0, total=len(sides.holdout), message="comparing with all controls")
    verdict = await decide(
        engine,
        network,
        active,
        sides,
        recall=lambda floor: Recall.of(settings, floor),
        seed=recipe.seed,
        goes_on=recipe.goes_on,
        progress=journal.progress,
    )
    manifest = manifest_of(
        journal.record, sides, start, recipe, trained, verdict.report, verdict.recall_floor
    )
    return manifest, Candidate(network, verdict.competence)


def _finish(night: _Night, manifest: dict[str, Any]) -> None:
    """Make the version the active one when the gate says so, and end the night.

    It has won against the prior that was active then. When an operator has chosen what is active, also none,
    that stands until it is released.
    """
    settings, version = night.settings, str(manifest["version"])
    promoted, message = bool(manifest["promoted"]), str(manifest["gate"]["reason"])
    active = _active(night.registry)
    now_active = active.version if active else None
    taken = f"`latentevolve priors activate {version}` takes this one"
    if promoted and now_active not in (manifest["parent"], version):
        promoted = False
        message = f"{message}; but {now_active or 'no prior'} was made active meanwhile and stays so: {taken}"
    elif promoted and not night.registry.activate_unless_pinned(version):
        promoted = False
        chosen = night.registry.active() or "no prior"
        message = (
            f"{message}; but {chosen} was chosen by an operator and stays active: {taken},"
            " `latentevolve priors release` lets nights choose again"
        )
    if promoted and settings.broker_url and settings.broker_url.startswith("redis"):
        announce(settings.broker_url, night.journal.record.space)
    night.journal.change(
        state="promoted" if promoted else "refused",
        phase="publish",
        done=1,
        total=1,
        version=version,
        parent=manifest["parent"],
        gate=manifest["gate"],
        message=message,
    )


def _published(night: _Night) -> dict[str, Any] | None:
    """Return the manifest that this night has published before it crashed."""
    manifests = night.registry.versions()
    return next((found for found in manifests if found.get(NIGHT) == night.journal.record.id), None)


def _episodes(night: _Night) -> list[Episode]:
    settings, snapshot = night.settings, read_snapshot(night.snapshot)
    good = [episode for episode in snapshot if episode.reward >= settings.night_min_reward]
    if len(good) < settings.night_min_episodes:
        raise TooFewEpisodesError(
            f"{len(good)} episodes of reward {settings.night_min_reward:g} or more; "
            f"a night needs {settings.night_min_episodes}"
        )
    return sorted(good, key=lambda episode: episode.created_at)


def _take_space(engine: Engine, settings: Settings) -> None:
    """Let the engine's space be known by the id under which the gateway keeps its memories."""
    known_as = memory_id(settings, engine.space.own_id, (engine.space.earlier_id,))
    engine.space = replace(engine.space, known_as=known_as)


def _check_space(engine: Engine, space: str, episodes: Sequence[Episode]) -> None:
    for found in {space, *(episode.space for episode in episodes)}:
        if found != engine.space.id:
            raise SpaceMismatchError(
                f"the night is of space {found}, this worker's model makes {engine.space.id}: "
                "give worker and gateway the same model, latent length and placement"
            )
    for episode in episodes:
        episode.check(*engine.space.shape)


def _fits(engine: Engine, episode: Episode) -> bool:
    """Whether the engine can be asked about this episode."""
    size = len(episode.prompt_token_ids) + engine.space.length + len(answer_of(engine, episode))
    try:
        engine.position(episode.prompt_token_ids)
    except PlacementError:
        return False
    return size < engine.max_model_len


def _active(registry: PriorRegistry) -> Prior | None:
    try:
        version = registry.active()
        return registry.load(version) if version else None
    except RegistryError as error:
        logger.warning("the active prior cannot be read and is no control: %s", error)
        return None


def _same_shape(prior: Prior, engine: Engine) -> bool:
    return (prior.network.length, prior.network.hidden_size) == engine.space.shape


def _network(engine: Engine, start: Prior | None, seed: int) -> PriorNetwork:
    length, hidden_size = engine.space.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rank = {"rank": start.network.rank} if start else {}
        network = PriorNetwork(hidden_size, length, base=engine.neutral_latent(), **rank)
    if start is not None:
        network.load_state_dict(start.network.state_dict())
    return network


def _count_attempt(night: _Night) -> None:
    """Note that the night is begun once more; only attempts that get no further count.

    Raises:
        NightCrashedError: it died too often at the same place.
    """
    attempts = night.log.attempt(night.journal.record.id, reached_step(night.checkpoint)) - 1
    if attempts >= MAX_ATTEMPTS:
        raise NightCrashedError(f"the worker died {attempts} times in this night; is there enough memory?")
