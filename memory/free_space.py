"""Whether there is room on the disk to write.

Owns the floor of free space and the one question that writers ask before they write. Knows nothing of what is
written. It is asked beforehand because nothing can be done afterwards: Qdrant Edge writes into mapped, sparse
files, and where the disk has no block left the kernel ends the process (SIGBUS). Nights and labels do not
ask: they are a few kilobytes in a database, whose writing fails with an error, and they say why nothing else
is written.
"""

import os
from pathlib import Path

from memory.episode import LatentMemoryError

MIB = 2**20
_RESERVE = 4


class NoRoomError(LatentMemoryError):
    """There is less free space than the floor; nothing was written."""


class FreeSpace:
    """The free space of the disk under one folder."""

    def __init__(self, folder: Path, least_mib: float) -> None:
        """`folder` need not be there yet. `least_mib` is the floor in MiB; 0: nothing is ever refused."""
        self._folder, self._least = folder, int(least_mib * MIB)

    def demand(self, what: str, size: int = 0, *, page: int = 0, reserve: bool = False) -> None:
        """Return if `what`, of `size` bytes, may be written.

        Args:
            what: For the message, such as `episodes`.
            size: Bytes that it takes, where they matter beside the floor.
            page: Bytes that may be taken at once, whatever the size: a lower floor is none.
            reserve: Whether a quarter of the floor is enough: for what makes room, or what a running process
                needs to go on.

        Raises:
            NoRoomError: there is too little room, with how much there is and what to do.
        """
        least = self._least // _RESERVE if reserve else self._least
        if not least:
            return
        least = max(least, page)
        free = self.free()
        if free < least + size:
            raise NoRoomError(
                f"{what} cannot be written: {free / MIB:.0f} MiB are free under {self._folder}, "
                f"{(least + size) / MIB:.0f} are wanted; delete something there, or lower "
                "LATENTEVOLVE_MIN_FREE_MIB"
            )

    @property
    def floor(self) -> int:
        """Free bytes below which nothing more is written; 0: never looked at."""
        return self._least

    def free(self) -> int:
        """Return the bytes that this process may still write."""
        found = self._disk()
        return found.f_bavail * found.f_frsize

    def size(self) -> int:
        """Return the bytes of the whole disk."""
        found = self._disk()
        return found.f_blocks * found.f_frsize

    def _disk(self) -> os.statvfs_result:
        folder = self._folder.absolute()
        while not folder.exists():
            folder = folder.parent
        return os.statvfs(folder)


UNLIMITED = FreeSpace(Path("/"), 0)
"""Refuses nothing: for tests, and for what is kept elsewhere."""
