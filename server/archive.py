"""Memory as a file, out of the server and into it.

Owns whose memory it is, and that neither way holds up the event loop. Knows nothing of the format
(`memory/archive.py`) or of HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

from memory.archive import ArchiveError, Memory, Taken, Taking, archive_of
from server.gateway import Gateway

PIECE_BYTES = 2**20
"""Of an archive on its way in that are handed on at once."""


async def exported(gateway: Gateway, tenant: str) -> Iterator[bytes]:
    """Return the pieces of an archive of what a tenant remembers; each blocks while the store is asked.

    Raises:
        StoreUnavailableError: the store does not answer, before anything is given.
    """
    await gateway.lookups.call(lambda store: store.count(tenant=tenant))
    return _while_nothing_is_forgotten(gateway, tenant, archive_of(gateway.store, _memory(gateway, tenant)))


async def imported(
    gateway: Gateway, tenant: str, pieces: AsyncIterator[bytes], owner: str | None = None
) -> Taken:
    """Take an archive of a tenant's, or of an `owner` who has handed it over; return what was taken of it.

    Raises:
        ArchiveError, NoRoomError, StoreUnavailableError: with what was taken before that; it stays.
    """
    taking, waiting = Taking(gateway.store, _memory(gateway, tenant), owner), bytearray()
    async for piece in pieces:
        waiting += piece
        if len(waiting) >= PIECE_BYTES:
            await asyncio.to_thread(taking.feed, bytes(waiting))
            waiting.clear()
    await asyncio.to_thread(taking.feed, bytes(waiting))
    return taking.finish()


def _while_nothing_is_forgotten(gateway: Gateway, tenant: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces; whoever deletes something ends an archive that may hold it."""
    before = gateway.upkeep.forgotten[tenant]
    for piece in pieces:
        if gateway.upkeep.forgotten[tenant] != before:
            raise ArchiveError("something was forgotten meanwhile; export again")
        yield piece


def _memory(gateway: Gateway, tenant: str) -> Memory:
    return Memory(gateway.space, tenant, *gateway.engine.space.shape)
