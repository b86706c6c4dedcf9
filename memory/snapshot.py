"""An immutable copy of the episodes that one night works on.

Owns the folder `{episodes.jsonl,vectors.safetensors}`. Knows nothing of stores or of nights.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from memory.atomic import write_folder
from memory.episode import Episode, LatentMemoryError
from memory.record import episode_of

TEXTS = "episodes.jsonl"
VECTORS = "vectors.safetensors"

PAGE = 256
"""Episodes that are read at a time."""

MAX_EPISODES = 10_000
"""Most episodes of one night, whose prompts came last: comparing all pairs of keys takes 100 MB."""


class SnapshotError(LatentMemoryError):
    """A snapshot that is missing, changed, or cannot be made."""


def write_snapshot(episodes: Iterable[Episode], path: Path) -> int:
    """Write episodes into the new folder `path` and return how many; latents are kept as float16.

    The folder is there completely or not at all.

    Raises:
        SnapshotError: `path` exists, or episodes of different spaces or shapes.
    """
    lines: list[str] = []
    keys, latents = [], []
    spaces: set[str] = set()
    for episode in episodes:
        lines.append(json.dumps(episode.summary(), ensure_ascii=False, allow_nan=False))
        keys.append(np.asarray(episode.key, np.float32))
        latents.append(np.asarray(episode.latent, np.float16))
        spaces.add(episode.space)
    shapes = {(key.shape, latent.shape) for key, latent in zip(keys, latents, strict=True)}
    if len(spaces) > 1 or len(shapes) > 1:
        raise SnapshotError(f"episodes of different spaces {sorted(spaces)} or shapes in one snapshot")
    text = "".join(f"{line}\n" for line in lines).encode()

    def fill(folder: Path) -> None:
        (folder / TEXTS).write_bytes(text)
        # An empty snapshot has arrays without rows; safetensors keeps their shape.
        arrays: dict[str, Any] = {
            "keys": np.stack(keys) if keys else np.zeros((0, 0), np.float32),
            "latents": np.stack(latents) if latents else np.zeros((0, 0, 0), np.float16),
        }
        metadata = {"episodes": str(len(lines)), "sha256": hashlib.sha256(text).hexdigest()}
        save_file(arrays, folder / VECTORS, metadata)

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_folder(path, fill)
    except FileExistsError as exc:
        raise SnapshotError(f"there is already a snapshot {path}") from exc
    return len(lines)


def pages(path: Path, size: int = PAGE) -> Iterator[list[Episode]]:
    """Yield the episodes in the order they were written, at most `size` at a time.

    Raises:
        SnapshotError: files that are missing, changed, or do not fit together.
    """
    try:
        with (path / TEXTS).open("rb") as text, safe_open(path / VECTORS, "numpy") as vectors:
            metadata: dict[str, str] = vectors.metadata() or {}
            if hashlib.file_digest(text, "sha256").hexdigest() != metadata.get("sha256"):
                raise SnapshotError(f"{path / TEXTS} does not have the checksum of {VECTORS}")
            text.seek(0)
            keys, latents = vectors.get_slice("keys"), vectors.get_slice("latents")
            rows = (json.loads(line) for line in text)
            count = keys.get_shape()[0]
            for start in range(0, count, size):
                part = slice(start, min(start + size, count))
                some = list(itertools.islice(rows, size))
                yield [
                    _episode(row, *pair) for row, *pair in zip(some, keys[part], latents[part], strict=True)
                ]
            if next(rows, None) is not None:
                raise SnapshotError(f"{path / TEXTS} has more lines than {VECTORS} has keys")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise SnapshotError(f"the snapshot {path} cannot be read: {exc}") from exc


def read_snapshot(path: Path) -> list[Episode]:
    """Return all episodes at once; arguments and errors as of `pages`."""
    return [episode for page in pages(path) for episode in page]


def _episode(row: dict[str, Any], key: Any, latent: Any) -> Episode:
    return episode_of(row.pop("id"), row, key, latent)
