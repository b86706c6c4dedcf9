"""Files that are there completely or not at all.

Owns the rename after a sync, for files and folders, the lock between processes, and what writers that died
left behind. Knows nothing of what is written.
"""

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}", re.DOTALL)
"""Names of what is being written."""


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON; a reader sees the old file or the new one, never a part."""

    def fill(new: Path) -> None:
        with new.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=2, allow_nan=False)
            file.write("\n")

    write_file(path, fill)


def write_file(path: Path, fill: Callable[[Path], object], *, durable: bool = True) -> None:
    """Replace the file `path` by what `fill` writes into an empty one beside it.

    Args:
        path: its folder is there.
        fill: must write into the file that it is given and not put another one in its place.
        durable: whether the file also survives a power failure; that takes a few milliseconds.
    """
    with _unfinished(path, lambda new: new.open("xb").close()) as new:
        fill(new)
        if durable:
            _sync(new)
        os.replace(new, path)
    if durable:
        _sync(path.parent)


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Make the folder `path` out of what `fill` writes into an empty one beside it.

    Raises:
        FileExistsError: there is something at `path`; then nothing is changed.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists")
    with _unfinished(path, lambda new: new.mkdir(parents=True)) as new:
        fill(new)
        for file in new.iterdir():
            _sync(file)
        _sync(new)
        os.rename(new, path)
    _sync(path.parent)


def sweep(folder: Path) -> int:
    """Delete what was never finished in a folder, and return how many files and folders that were.

    What a living process is writing, here or on another machine that locks the same files, is left alone.
    """
    swept = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        if not _UNFINISHED.fullmatch(path.name):
            continue
        try:
            descriptor = _opened(path)
        except OSError:  # finished meanwhile, or not ours to open
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _delete(path)
            swept += 1
        except OSError:  # being written, or on a disk where nobody can say
            pass
        finally:
            os.close(descriptor)
    return swept


@contextmanager
def _unfinished(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Make a file or folder beside `path` under a name that `sweep` knows, locked while it is written."""
    while True:
        new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        make(new)
        try:
            descriptor = _opened(new)
        except FileNotFoundError:  # swept before it was locked
            continue
        with suppress(OSError):  # where it cannot be locked, no sweep can lock it either, and leaves it alone
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if new.exists():
            break
        os.close(descriptor)
    try:
        yield new
    except BaseException:
        _delete(new)
        raise
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    # NFS gives an exclusive lock only on what is open for writing, which a folder never is.
    return os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
