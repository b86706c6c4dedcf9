"""Libraries that make the engine faster on a CPU when they are loaded before all others.

Owns finding tcmalloc (system package) and Intel's OpenMP (wheel intel-openmp). Both are optional:
one that is not there is left out.
"""

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

LIBRARY_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")


def preload(env: Mapping[str, str]) -> dict[str, str]:
    """Return {"LD_PRELOAD": …} with what was found before what `env` already asks for, or {}."""
    if sys.platform != "linux":
        return {}
    asked = env.get("LD_PRELOAD", "")
    found = [str(path) for path in (tcmalloc(), openmp()) if path and path.name not in asked]
    return {"LD_PRELOAD": ":".join([*found, *([asked] if asked else [])])} if found else {}


def tcmalloc() -> Path | None:
    """Return the system's tcmalloc, the smaller build when both are there."""
    for pattern in ("libtcmalloc_minimal.so*", "libtcmalloc.so*"):
        for folder in map(Path, LIBRARY_FOLDERS):
            if found := sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")]):
                return found[0]
    return None


def openmp() -> Path | None:
    """Return libiomp5 of the installed wheel."""
    try:
        for file in files("intel-openmp") or ():
            if file.name == "libiomp5.so":
                path = Path(str(file.locate())).resolve()
                return path if path.is_file() else None
    except PackageNotFoundError:
        pass
    return None
