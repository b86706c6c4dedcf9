"""An immutable copy of the episodes that one night works on.

Owns the folder `{episodes.jsonl}` and how vectors stand in it. Episode after episode is written and read: no
more than one is held. Knows nothing of stores or of nights.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memory.atomic import write_folder
from memory.episode import Episode, LatentMemoryError
from memory.record import episode_of

EPISODES = "episodes.jsonl"
"""A line for each episode, its vectors in base64 (little-endian); in the last one their number and digest."""

MAX_EPISODES = 10_000
"""Most episodes that one night looks at, those whose prompts came last. It learns from fewer
(`worker/dataset.py`), but compares all their keys with each other."""


class SnapshotError(LatentMemoryError):
    """A snapshot that is missing, changed, or cannot be made."""


def write_snapshot(episodes: Iterable[Episode], path: Path) -> int:
    """Write episodes into the new folder `path` and return how many; latents are kept as float16.

    The folder is there completely or not at all.

    Raises:
        SnapshotError: `path` exists, or episodes of different spaces or shapes.
    """
    written = 0

    def fill(folder: Path) -> None:
        nonlocal written
        kinds = set()
        digest = hashlib.sha256()
        with (folder / EPISODES).open("wb") as file:
            for episode in episodes:
                kinds.add((episode.space, episode.key.shape, episode.latent.shape))
                if len(kinds) > 1:
                    raise SnapshotError(f"episodes of different spaces or shapes in one snapshot: {kinds}")
                line = _line(episode.summary() | _vectors(episode))
                file.write(line)
                digest.update(line)
                written += 1
            file.write(_line({"episodes": written, "sha256": digest.hexdigest()}))

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_folder(path, fill)
    except FileExistsError as exc:
        raise SnapshotError(f"there is already a snapshot {path}") from exc
    return written


def read_snapshot(path: Path) -> Iterator[Episode]:
    """Yield the episodes in the order they were written.

    Raises:
        SnapshotError: files that are missing or changed; of some of that only the end can tell.
    """
    digest = hashlib.sha256()
    episodes, sealed = 0, False
    try:
        with (path / EPISODES).open("rb") as file:
            for line in file:
                row = json.loads(line)
                if "sha256" in row:
                    sealed = row == {"episodes": episodes, "sha256": digest.hexdigest()} and not file.read(1)
                    break
                digest.update(line)
                episodes += 1
                key = np.frombuffer(base64.b64decode(row.pop("key")), "<f4")
                latent = np.frombuffer(base64.b64decode(row.pop("latent")), "<f2").reshape(-1, len(key))
                yield episode_of(row.pop("id"), row, key.copy(), latent)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SnapshotError(f"the snapshot {path} cannot be read: {exc}") from exc
    if not sealed:
        raise SnapshotError(f"{path / EPISODES} is not what was written")


def _vectors(episode: Episode) -> dict[str, str]:
    arrays = {"key": np.asarray(episode.key, "<f4"), "latent": np.asarray(episode.latent, "<f2")}
    return {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}


def _line(values: dict[str, Any]) -> bytes:
    return f"{json.dumps(values, ensure_ascii=False, allow_nan=False)}\n".encode()
