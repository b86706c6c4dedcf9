"""An immutable copy of the episodes that one night works on.

Owns the folder `{episodes.jsonl,vectors.safetensors}`. Knows nothing of stores or of nights.
"""

import hashlib
import json
from collections.abc import Iterable
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


def read_snapshot(path: Path) -> list[Episode]:
    """Return the episodes in the order they were written.

    Raises:
        SnapshotError: files that are missing, changed, or do not fit together.
    """
    try:
        text = (path / TEXTS).read_bytes()
        with safe_open(path / VECTORS, "numpy") as vectors:
            metadata: dict[str, str] = vectors.metadata() or {}
            keys, latents = vectors.get_tensor("keys"), vectors.get_tensor("latents")
        if hashlib.sha256(text).hexdigest() != metadata.get("sha256"):
            raise SnapshotError(f"{path / TEXTS} does not have the checksum of {VECTORS}")
        rows = [json.loads(line) for line in text.decode().split("\n") if line]
        return [_episode(row, *pair) for row, *pair in zip(rows, keys, latents, strict=True)]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise SnapshotError(f"the snapshot {path} cannot be read: {exc}") from exc


def _episode(row: dict[str, Any], key: Any, latent: Any) -> Episode:
    return episode_of(row.pop("id"), row, key, latent)
