"""Published priors of one space, and which of them is active.

Owns the layout `root/<space>/vN/{prior.safetensors,manifest.json}`, and in the state which version is active,
which were before, and which number was given last. Knows nothing of how priors are trained, judged or served.

RegistryError
├── UnknownVersionError   there is no such version
├── NothingBeforeError    nothing is known to have been active before
├── CorruptPriorError     files that are missing, changed, or do not fit together
└── WrongSpaceError       a prior of another space
"""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from sqlalchemy import Connection, insert, select, update

from memory.atomic import write_folder
from memory.database import Database
from memory.episode import LatentMemoryError, now
from memory.free_space import UNLIMITED, FreeSpace
from memory.prior import DEFAULT_FLOOR, Coverage, Prior, Row, learned_of
from memory.schema import activations, labels

logger = logging.getLogger(__name__)

WEIGHTS = "prior.safetensors"
MANIFEST = "manifest.json"

_VERSION = re.compile(r"v([1-9][0-9]*)")
_SPACE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*(?:\+[a-z0-9-]+)?")


class RegistryError(LatentMemoryError):
    """Base of what the registry raises."""


class UnknownVersionError(RegistryError):
    """There is no such version."""


class NothingBeforeError(RegistryError):
    """Nothing is known to have been active before what is."""


class CorruptPriorError(RegistryError):
    """Files of a prior that are missing, changed, or do not fit together."""


class WrongSpaceError(RegistryError):
    """A prior of another space."""


Cause = Literal["night", "operator", "rollback", "earlier build"]


@dataclass(frozen=True)
class Activation:
    """That a version became the active one; None: that no prior was."""

    version: str | None
    cause: Cause
    at: datetime


class PriorRegistry:
    """Versions of one space. Any number of processes may read and write at once.

    Versions are immutable folders, renamed into place when complete; numbers are never used again.
    """

    def __init__(self, root: Path, space: str, state: Database, room: FreeSpace = UNLIMITED) -> None:
        """Open the versions of one space.

        Args:
            root: Folder of all spaces' priors.
            space: Id of the space, or name of a tenant's part of it.
            state: Where labels are kept.
            room: Asked by `publish`.

        Raises:
            ValueError: `space` cannot be the name of a folder.
        """
        if not _SPACE.fullmatch(space):
            raise ValueError(f"{space!r} is no id of a space")
        self.root = root / space
        self.space = space
        self._state = state
        self._room = room
        self._digests: dict[str, tuple[tuple[int, int, int] | None, str]] = {}
        """Of each version the state of its manifest when it was read, and the checksum in it."""

    def publish(self, rows: Sequence[Row], manifest: Mapping[str, Any]) -> str:
        """Write a new version and return its name; it does not become active.

        A row without an id is given one of this version. `manifest` may hold anything JSON can: parent, data
        window, episode ids, metrics, evidence, seed, settings, code version. Version, space, rows, sizes and
        checksum are added here.

        Raises:
            ValueError: `manifest` is not JSON, there are no rows, their shapes differ or they are not finite.
            StateUnavailableError: the state gives it no number.
            NoRoomError: the disk is too full.
        """
        weights = _pack(rows)
        self._room.demand("a prior", len(weights), reserve=True)
        length, hidden_size = rows[0].latent.shape
        written = {"parent": None, "created_at": now().isoformat(), **manifest}
        self.root.mkdir(parents=True, exist_ok=True)
        version = f"v{self._next_number()}"
        named = [replace(row, id=row.id or f"{version}/{at}") for at, row in enumerate(rows)]
        written |= {
            "version": version,
            "space": self.space,
            "length": length,
            "hidden_size": hidden_size,
            "rows": [_description(row) for row in named],
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
        text = json.dumps(written, ensure_ascii=False, indent=2, allow_nan=False)

        def fill(folder: Path) -> None:
            (folder / WEIGHTS).write_bytes(weights)
            (folder / MANIFEST).write_text(text, encoding="utf-8")

        write_folder(self.root / version, fill)
        return version

    def versions(self) -> list[dict[str, Any]]:
        """Return the manifests, oldest first; one that cannot be read is `{version, space, error}`."""
        manifests = []
        for number in sorted(self._numbers()):
            version = f"v{number}"
            try:
                manifests.append(self._manifest(version))
            except RegistryError as exc:
                logger.warning("prior %s of space %s: %s", version, self.space, exc)
                manifests.append({"version": version, "space": self.space, "error": str(exc)})
        return manifests

    def learned_from(self, digests: Collection[str]) -> list[tuple[str, list[str]]]:
        """Return the versions that learned from any of these prompts, oldest first, and their rows that did.

        Args:
            digests: as `memory.episode.prompt_digest` names prompts.
        """
        wanted, trained = frozenset(digests), []
        for manifest in self.versions():
            learned = learned_of(manifest)
            rows = sorted(row for row, prompts in learned.items() if not wanted.isdisjoint(prompts))
            if rows:
                trained.append((str(manifest["version"]), rows))
        return trained

    def load(self, version: str) -> Prior:
        """Return a version, checked against its checksum and ready to serve.

        Raises:
            UnknownVersionError, CorruptPriorError, WrongSpaceError
        """
        manifest = self._manifest(version)
        path = self.root / version / WEIGHTS
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise CorruptPriorError(f"{path} cannot be read: {exc}") from exc
        if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
            raise CorruptPriorError(f"{path} does not have the checksum of its manifest")
        try:
            rows = _unpack(data, manifest)
        except (SafetensorError, KeyError, TypeError, ValueError) as exc:
            raise CorruptPriorError(f"{path} does not fit its manifest: {exc}") from exc
        return Prior(version, self.space, rows, manifest)

    def digest(self, version: str) -> str:
        """Return the checksum of a version's weights, as its manifest has it; read again when that changed.

        Raises:
            UnknownVersionError, CorruptPriorError, WrongSpaceError
        """
        try:
            status = (self.root / version / MANIFEST).stat()
            state = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            state = None
        known = self._digests.get(version)
        if known is None or known[0] != state:
            known = state, str(self._manifest(version).get("sha256"))
            self._digests[version] = known
        return known[1]

    def active(self) -> str | None:
        """Return the active version, None when there is none.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        with self._state.read() as connection:
            return self._label(connection)[0]

    def pinned(self) -> bool:
        """Return whether an operator chose what is active, so that nights leave it as it is.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        with self._state.read() as connection:
            return self._label(connection)[1]

    def activations(self, limit: int = 20) -> list[Activation]:
        """Return what was active, newest first; what earlier builds activated is not among it.

        Raises:
            StateUnavailableError: the state cannot be read.
        """
        columns = (activations.c.version, activations.c.cause, activations.c.at)
        query = select(*columns).filter_by(space=self.space).order_by(activations.c.number.desc())
        with self._state.read() as connection:
            return [Activation(*row) for row in connection.execute(query.limit(limit))]

    def activate(self, version: str | None, *, pinned: bool = False) -> None:
        """Make a version the active one, None for no prior; it must load without error.

        Args:
            version: such as v3.
            pinned: whether an operator has chosen it: it stays until it is released.

        Raises:
            UnknownVersionError, CorruptPriorError, WrongSpaceError: then the active one stays.
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        if version is not None:
            self.load(version)
        with self._state.write() as connection:
            self._point(connection, version, pinned, "operator" if pinned else "night")

    def roll_back(self) -> str | None:
        """Make active, and pin, what was active before, and return it; asked again, what was before that.

        Raises:
            NothingBeforeError: nothing was, as far as is known.
            UnknownVersionError, CorruptPriorError, WrongSpaceError: it cannot be served any more.
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        with self._state.write() as connection:
            top = self._top(connection)
            if top.before is None:
                raise NothingBeforeError(
                    f"nothing is known to have been active before {top.version or 'no prior'};"
                    " activate a version"
                )
            below = connection.execute(select(activations).filter_by(number=top.before)).one()
            if below.version is not None:
                self.load(below.version)
            self._push(connection, below.version, "rollback", below.before)
            self._set(connection, active=below.version, pinned=True, activated_at=now())
        version: str | None = below.version
        return version

    def activate_unless_pinned(self, version: str) -> bool:
        """Make a version the active one unless another one is pinned, and return whether it is active now.

        Raises:
            UnknownVersionError, CorruptPriorError, WrongSpaceError: then the active one stays.
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        self.load(version)
        with self._state.write() as connection:
            active, pinned = self._label(connection)
            if active == version:
                return True
            if not pinned:
                self._point(connection, version, False, "night")
            return not pinned

    def release(self) -> None:
        """Let nights choose again what is active; until then what is active stays so.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        with self._state.write() as connection:
            self._set(connection, pinned=False)

    def _label(self, connection: Connection) -> tuple[str | None, bool]:
        """Return which version is active, and whether it is pinned."""
        rows = connection.execute(select(labels.c.active, labels.c.pinned).filter_by(space=self.space))
        label = rows.one_or_none()
        return (None, False) if label is None else (label.active, label.pinned)

    def _point(self, connection: Connection, version: str | None, pinned: bool, cause: Cause) -> None:
        top = self._top(connection)
        if top.version != version:
            self._push(connection, version, cause, top.number)
        self._set(connection, active=version, pinned=pinned, activated_at=now())

    def _top(self, connection: Connection) -> Any:
        """Return the activation of what is active; what an earlier build made so is noted first."""
        query = select(activations).filter_by(space=self.space).order_by(activations.c.number.desc()).limit(1)
        top = connection.execute(query).one_or_none()
        active, _ = self._label(connection)
        if top is None or top.version != active:
            self._push(connection, active, "earlier build", None if top is None else top.number)
            top = connection.execute(query).one()
        return top

    def _push(self, connection: Connection, version: str | None, cause: Cause, before: int | None) -> None:
        values = {"space": self.space, "version": version, "cause": cause, "at": now(), "before": before}
        connection.execute(insert(activations).values(values))

    def _next_number(self) -> int:
        """Return a number that no version has, nor had: not even one whose folder was deleted."""
        given = select(labels.c.last_number).filter_by(space=self.space)
        with self._state.write() as connection:
            number = 1 + max(0, connection.scalar(given) or 0, *self._numbers())
            self._set(connection, last_number=number)
        return number

    def _set(self, connection: Connection, **values: Any) -> None:
        """Change the space's row; whoever does is alone."""
        if not connection.execute(update(labels).filter_by(space=self.space).values(values)).rowcount:
            first = {"space": self.space, "pinned": False, "last_number": 0}
            connection.execute(insert(labels).values(first | values))

    def _manifest(self, version: str) -> dict[str, Any]:
        folder = self.root / version
        if not _VERSION.fullmatch(version) or not folder.is_dir():
            raise UnknownVersionError(f"there is no prior {version!r} of space {self.space}")
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise CorruptPriorError(f"{path} cannot be read: {exc}") from exc
        if not isinstance(manifest, dict) or manifest.get("version") != version:
            raise CorruptPriorError(f"{path} is not the manifest of {version}")
        if manifest.get("space") != self.space:
            raise WrongSpaceError(f"{path} is of space {manifest.get('space')}, not {self.space}")
        return manifest

    def _numbers(self) -> list[int]:
        if not self.root.is_dir():
            return []
        matches = (_VERSION.fullmatch(entry.name) for entry in self.root.iterdir() if entry.is_dir())
        return [int(match[1]) for match in matches if match]


def _description(row: Row) -> dict[str, Any]:
    """Return what the manifest says of a row."""
    leanings = [[list(choices), list(leans)] for choices, leans in row.leanings.items()]
    described = {"id": row.id, "baseline": row.baseline, "stake": row.stake, "leanings": leanings}
    return {**described, "promoted": True} if row.promoted else described


def _pack(rows: Sequence[Row]) -> bytes:
    if not rows:
        raise ValueError("a prior has no rows")
    tensors = {
        "latents": np.stack([row.latent for row in rows]),  # (C, L, d)
        "centroids": np.concatenate([row.coverage.centroids for row in rows]),  # (K, d)
        "thresholds": np.concatenate([row.coverage.thresholds for row in rows]),  # (K,)
    }
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity")
    sizes = [len(row.coverage.centroids) for row in rows]
    owners = np.repeat(np.arange(len(rows), dtype=np.int64), sizes)  # (K,) number of each centroid's row
    floats = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    return save({**floats, "owners": owners})


def _unpack(data: bytes, manifest: Mapping[str, Any]) -> tuple[Row, ...]:
    tensors = load(data)
    hidden_size, length = int(manifest["hidden_size"]), int(manifest["length"])
    if "latents" not in tensors:
        tensors = _table_of_network(tensors, manifest)
    latents, centroids = tensors["latents"], tensors["centroids"]
    thresholds, owners = tensors["thresholds"], tensors["owners"]
    promoted, version = manifest.get("promoted", False), manifest["version"]
    unnamed = [{"id": f"{version}/{at}", "promoted": promoted} for at in range(len(latents))]
    named = manifest.get("rows", unnamed)
    if latents.shape != (len(named), length, hidden_size):
        raise ValueError(f"latents have shape {latents.shape}")
    if centroids.shape != (len(owners), hidden_size) or thresholds.shape != owners.shape:
        raise ValueError(f"centroids have shape {centroids.shape}, thresholds {thresholds.shape}")
    return tuple(
        Row(
            str(name["id"]),
            latents[at],
            Coverage(centroids[owners == at], thresholds[owners == at]),
            name.get("baseline"),
            float(name.get("stake", 1.0)),
            {tuple(choices): tuple(leans) for choices, leans in name.get("leanings", ())},
            bool(name.get("promoted", False)),
        )
        for at, name in enumerate(named)
    )


def _table_of_network(
    tensors: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """Return the table of a version published when priors were networks: what it gave for each cluster.

    They were asked with the mean key of a cluster, which stands beside each centroid that belongs to it.
    """
    centroids = tensors["competence.centroids"]
    if "competence.means" not in tensors:
        raise ValueError(
            "it is of a build that asked priors with each request's own key; let a night train anew"
        )
    means, owners = np.unique(tensors["competence.means"], axis=0, return_inverse=True)
    hidden = np.tanh(means @ tensors["network.down.weight"].T)  # (C, rank)
    residual = hidden @ tensors["network.up.weight"].T  # (C, L·d)
    base = tensors["network.base"]
    alike = np.full(len(centroids), float(manifest.get("threshold", DEFAULT_FLOOR)), np.float32)
    return {
        "latents": (base + residual.reshape(-1, *base.shape)).astype(np.float32),
        "centroids": centroids,
        "thresholds": tensors.get("competence.thresholds", alike),
        "owners": owners.reshape(-1),
    }
