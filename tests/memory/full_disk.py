"""A disk that is as full as a test says."""

from pathlib import Path

from memory.free_space import MIB, FreeSpace


class Disk(FreeSpace):
    """100 MiB are wanted, 25 of them are the reserve; `free_mib` are free."""

    def __init__(self, free_mib: int = 1000) -> None:
        super().__init__(Path("/somewhere"), 100)
        self.free_mib = free_mib

    def free(self) -> int:
        return self.free_mib * MIB
