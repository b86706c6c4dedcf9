"""Forgetting what is remembered, wherever it is.

Owns that what waits to be written or to be explored is forgotten with what is stored, and what was asked and
answered with its episode, and what is told of copies elsewhere. Knows nothing of HTTP or of stores.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from memory.episode import StoreUnavailableError, is_own_id, now, prompt_digest
from memory.listing import Place
from memory.night import NightLog
from memory.store import EpisodeStore, Where
from server.gateway import Gateway
from server.tenants import Parts

DRAIN_S = 10.0
"""How long episodes that wait may take to be written, so that the store can say which of them are meant."""
_AT_ONCE = 256


@dataclass(frozen=True)
class Touched:
    """A version of the prior that was trained on what is forgotten."""

    version: str
    rows: list[str]
    """Ids of its rows that were."""
    active: bool


@dataclass(frozen=True)
class Forgotten:
    """What was forgotten, and where it has left something."""

    deleted: int
    priors: list[Touched]
    night: str | None
    """The open night, whose snapshot may hold it until that ends."""


NOTHING = Forgotten(0, [], None)


async def forget(gateway: Gateway, tenant: str, where: Where) -> Forgotten:
    """Delete the episodes that there are of a tenant and of `where`; those of later requests stay.

    Raises:
        StoreUnavailableError, NoRoomError: some may be deleted; asked again, the others go too.
    """
    where = replace(where, tenant=tenant)
    everything = where == Where(tenant)
    if everything:
        gateway.steering.explorer.forget(tenant, None)
    await _written(gateway)
    meant = await gateway.statistics.call(lambda store: _meant(store, where))
    forgotten = await _forget(gateway, tenant, meant)
    if everything:
        await gateway.traces.forget(None, tenant)
    return forgotten


async def forget_one(gateway: Gateway, tenant: str, episode_id: str) -> Forgotten:
    """Delete one episode of a tenant, and what waits to be written of it.

    Raises:
        StoreUnavailableError, NoRoomError: nothing is deleted.
    """
    if not is_own_id(tenant, episode_id):
        return NOTHING
    return await _forget(gateway, tenant, {episode_id: await _digest(gateway, episode_id)})


async def forget_request(gateway: Gateway, tenant: str, name: str) -> Forgotten | None:
    """Delete all that is kept of the prompt of one request, by the id of its trace or of feedback on it.

    Where its trace is gone, that is the episode that holds its answer. None: nothing of that name is kept.

    Raises:
        StoreUnavailableError, StateUnavailableError, NoRoomError: some may be deleted; asked again, the rest
            goes too.
    """
    said = await asyncio.to_thread(gateway.state.feedback, name, tenant)
    trace_id = said.trace if said else name
    kept = await gateway.traces.exchange(trace_id, tenant)
    prompt = kept.prompt if kept else None
    if prompt is not None:
        gateway.steering.explorer.forget(tenant, {prompt})
    await _written(gateway)
    where = Where(tenant, trace_id=trace_id)
    meant = await gateway.statistics.call(lambda store: _meant(store, where))
    if prompt is not None and prompt not in meant:
        asked = kept.asked if kept else None
        meant[prompt] = prompt_digest(asked.token_ids) if asked else await _digest(gateway, prompt)
    if kept is None and not meant:
        return None
    await gateway.traces.forget_one(trace_id, tenant)
    return await _forget(gateway, tenant, meant)


async def _digest(gateway: Gateway, episode_id: str) -> str:
    """Return the digest of an episode's prompt, of none where there is no such episode."""
    found = await gateway.lookups.call(lambda store: store.get(episode_id))
    return prompt_digest(found.prompt_token_ids if found else ())


async def _written(gateway: Gateway) -> None:
    """Wait for what is on its way into the store, so that it can say which episodes are meant."""
    if not await gateway.remember.drain(DRAIN_S):
        waiting = gateway.remember.pending
        raise StoreUnavailableError(f"{waiting} episodes wait to be written, some maybe of these; ask again")


async def _forget(gateway: Gateway, tenant: str, meant: dict[str, str]) -> Forgotten:
    """Delete episodes by their ids, with the digests of their prompts.

    What priors have learned from them goes out of service first: were that last, a deletion that fails
    half-way would leave nothing to find it by.
    """
    if not meant:
        return NOTHING
    since = now()
    gateway.steering.explorer.forget(tenant, meant)
    await gateway.traces.forget(meant, tenant)
    own = await gateway.tenants.of(tenant)
    _, night = await _silence(gateway, own, meant, since)
    deleted = 0
    for name in meant:  # one by one, for an answer to the same prompt may wait to be written again
        if await gateway.remember.delete(name):
            deleted += 1
            gateway.upkeep.forgotten[tenant] += 1
    priors, later = await _silence(gateway, own, meant, since)  # a night may have come meanwhile
    return Forgotten(deleted, priors, later or night)


async def _silence(
    gateway: Gateway, own: Parts, meant: Mapping[str, str], since: datetime
) -> tuple[list[Touched], str | None]:
    """Take what learned from prompts out of service, and return it, and the night that may be about to."""
    priors, night = await asyncio.to_thread(_elsewhere, gateway, own, set(meant.values()))
    rows = {row: one.active for one in sorted(priors, key=lambda one: one.active) for row in one.rows}
    if rows:
        await own.nights.erased(rows, since)
        await own.prior.refresh()
    return priors, night


def _meant(store: EpisodeStore, where: Where) -> dict[str, str]:
    """Return the digests of the prompts of episodes by their ids."""
    found: dict[str, str] = {}
    after: Place | None = None
    while True:
        page = store.page(where, limit=_AT_ONCE, after=after)
        found |= {one["id"]: prompt_digest(one["prompt_token_ids"]) for one in page.episodes}
        after = page.next
        if after is None:
            return found


def _elsewhere(gateway: Gateway, own: Parts, digests: set[str]) -> tuple[list[Touched], str | None]:
    """Return the priors that learned from prompts, and the night that may be about to."""
    registry = own.registry
    active = registry.active()
    touched: Sequence[tuple[str, list[str]]] = registry.learned_from(digests)
    night = NightLog(gateway.state).running(registry.space)
    priors = [Touched(version, rows, version == active) for version, rows in touched]
    return priors, night.id if night else None
