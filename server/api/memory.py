"""GET /v1/memory/stats, GET and DELETE /v1/memory/episodes/{id}: what is remembered, and forgotten again."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter

from server.api.deps import GatewayDep
from server.errors import NotFoundError

router = APIRouter(prefix="/v1/memory", tags=["memory"])


@router.get("/stats")
async def stats(gateway: GatewayDep) -> dict[str, Any]:
    """Return counts and rewards of the served space, the hit rate, and the evidence about rows."""
    found = await gateway.statistics.call(lambda store: store.stats())
    return {
        "space": gateway.space,
        "spaces": {
            gateway.space: {
                "episodes": found.episodes,
                "seen": found.seen,
                "reward_mean": found.reward_mean,
                "reward_histogram": list(found.reward_histogram),
                "oldest": found.oldest.isoformat() if found.oldest else None,
                "newest": found.newest.isoformat() if found.newest else None,
            }
        },
        "prior": gateway.prior.summary(),
        "requests": gateway.tally.summary(),
        "hit_rate": gateway.steering.counts.hit_rate,
        "exploring": gateway.steering.explorer.summary,
        "pending_writes": gateway.remember.pending,
        "dropped_writes": gateway.remember.counts.dropped,
        "refused_writes": gateway.remember.counts.refused,
        "lost_traces": gateway.traces.lost,
    }


@router.get("/episodes/{episode_id}")
async def episode(gateway: GatewayDep, episode_id: str) -> dict[str, Any]:
    """Return one episode without its vectors."""
    name = _name(episode_id)
    found = await gateway.lookups.call(lambda store: store.get(name))
    if found is None:
        raise _unknown(name)
    return found.summary()


@router.delete("/episodes/{episode_id}", status_code=204)
async def delete_episode(gateway: GatewayDep, episode_id: str) -> None:
    """Forget one episode: it is recalled no more, and later nights do not see it."""
    name = _name(episode_id)
    if not await gateway.remember.delete(name):
        raise _unknown(name)


def _name(episode_id: str) -> str:
    try:
        return str(UUID(episode_id))
    except ValueError:
        raise NotFoundError("ids of episodes are UUIDs, as in x-latent-episodes", "episode_id") from None


def _unknown(name: str) -> NotFoundError:
    return NotFoundError(f"no episode {name} in this space", "episode_id")
