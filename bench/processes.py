"""Processes as the system counts them: who descends from whom, and their memory.

Owns the counting. Knows nothing of what the processes do.
"""

import contextlib
from typing import Any

import psutil  # type: ignore[import-untyped]


def family(pid: int) -> list[int]:
    """Return a process and everything that descends from it; [] when it has gone."""
    try:
        parent = psutil.Process(pid)
        return [pid, *(child.pid for child in parent.children(recursive=True))]
    except psutil.Error:
        return []


def resident_mib() -> int:
    """Return the memory of this process that is in RAM, in MiB."""
    return int(psutil.Process().memory_info().rss) >> 20


def memory(pid: int) -> dict[str, Any]:
    """Return the proportional set size of a process and its descendants in MiB: shared pages count once."""
    found: list[dict[str, Any]] = []
    for member in family(pid):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(member)
            size = int(process.memory_full_info().pss) >> 20
            found.append({"process": _name(process), "mib": size})
    return {"total_mib": sum(each["mib"] for each in found), "processes": found}


def _name(process: Any) -> str:
    """Return the part of a command line that tells processes apart: what comes after the interpreter."""
    words = process.cmdline()
    if len(words) > 2 and words[1] in ("-m", "-c"):
        words = words[2:]
    return " ".join(words).strip()[:60] or str(process.name())
