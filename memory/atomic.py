"""Files that are there completely or not at all.

Owns the rename after a sync, for files and folders, and the lock between processes. Knows nothing
of what is written.
"""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON; a reader sees the old file or the new one, never a part."""
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with new.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `path` out of what `fill` writes into an empty one beside it.

    Raises:
        FileExistsError: there is something at `path`; then nothing is changed.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists")
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    new.mkdir(parents=True)
    try:
        fill(new)
        for file in new.iterdir():
            _sync(file)
        _sync(new)
        os.rename(new, path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _sync(path.parent)


def sync_tree(path: Path) -> None:
    """Have the kernel write a folder and everything below it."""
    for file in path.rglob("*"):
        _sync(file)
    _sync(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` against other processes and threads; its end releases it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
