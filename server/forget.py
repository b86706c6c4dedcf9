"""Forgetting many episodes at once.

Owns that what waits to be written is forgotten with what is stored. Knows nothing of HTTP or of stores.
"""

from memory.episode import StoreUnavailableError
from memory.store import Where
from server.gateway import Gateway

DRAIN_S = 10.0
"""How long episodes that wait may take to be written, so that the store can say which of them are meant."""


async def forget(gateway: Gateway, where: Where) -> int:
    """Delete the episodes that there are of `where` and return how many; those of later requests stay.

    Raises:
        StoreUnavailableError, NoRoomError: some may be deleted; asked again, the others go too.
    """
    if not await gateway.remember.drain(DRAIN_S):
        waiting = gateway.remember.pending
        raise StoreUnavailableError(f"{waiting} episodes wait to be written, some maybe of these; ask again")
    names = await gateway.statistics.call(lambda store: [one.id for one in store.outlines(where)])
    # One by one, for an answer to the same prompt may wait to be written again.
    deleted = [await gateway.remember.delete(name) for name in names]
    return sum(deleted)
