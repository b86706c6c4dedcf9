"""Looking up what is remembered, for people and programs; requests recall by themselves.

Owns how a look-up becomes a question to the store. Knows nothing of HTTP.
"""

from memory.episode import Array
from memory.store import EpisodeStore, Recalled
from server.errors import NotFoundError
from server.gateway import Gateway
from server.keys import keys_of


async def like_text(gateway: Gateway, tenant: str, text: str, k: int, floor: float) -> list[Recalled]:
    """Return the up to `k` episodes of a tenant most like a request of this text, of cosine ≥ `floor`.

    Raises:
        InvalidRequestError: the text is no prompt.
        StoreUnavailableError: the store does not answer.
    """
    keys, _ = await keys_of(gateway, [text], "text")
    return await gateway.lookups.call(lambda store: _near(store, tenant, keys[0], k, floor))


async def like_episode(
    gateway: Gateway, tenant: str, episode_id: str, k: int, floor: float
) -> list[Recalled]:
    """Return the up to `k` episodes of a tenant most like this one of its own, which is left out.

    Raises:
        NotFoundError: there is no such episode.
        StoreUnavailableError: the store does not answer.
    """

    def look(store: EpisodeStore) -> list[Recalled] | None:
        itself = store.get(episode_id)
        if itself is None or itself.tenant != tenant:
            return None
        found = _near(store, tenant, itself.key, k + 1, floor)
        return [one for one in found if one.episode.id != episode_id][:k]

    found = await gateway.lookups.call(look)
    if found is None:
        raise NotFoundError(f"no episode {episode_id} in this space", "id")
    return found


def _near(store: EpisodeStore, tenant: str, key: Array, k: int, floor: float) -> list[Recalled]:
    near = store.near(key, tenant=tenant, k=k, floor=floor)
    episodes = {one.id: one for one in store.fetch([one.id for one in near])}
    # One that was deleted a moment ago is left out.
    return [Recalled(episodes[one.id], one.similarity) for one in near if one.id in episodes]
