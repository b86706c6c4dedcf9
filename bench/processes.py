"""Processes as the system counts them: who descends from whom, memory, time of the processor.

Owns the counting. Knows nothing of what the processes do.
"""

import contextlib
import time
from typing import Any

import psutil  # type: ignore[import-untyped]


def children() -> list[int]:
    """Return the processes that this one has started."""
    return [child.pid for child in psutil.Process().children()]


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


def idle_cores(pids: list[int], seconds: float) -> list[float]:
    """Return how many cores each family keeps busy, over some seconds in which nobody asks it anything."""
    before = [_cpu_s(pid) for pid in pids]
    begun = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - begun
    return [max(0.0, _cpu_s(pid) - start) / elapsed for pid, start in zip(pids, before, strict=True)]


def _cpu_s(pid: int) -> float:
    total = 0.0
    for member in family(pid):
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(member).cpu_times()
            total += float(times.user + times.system)
    return total


def _name(process: Any) -> str:
    """Return the part of a command line that tells processes apart: what comes after the interpreter."""
    words = process.cmdline()
    if len(words) > 2 and words[1] in ("-m", "-c"):
        words = words[2:]
    return " ".join(words).strip()[:60] or str(process.name())
