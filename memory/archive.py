"""A memory as one stream of bytes, and back.

Owns the archive's format and what of one is taken. No more than one part of it is held at a time, however
long it is. Knows nothing of HTTP or of how stores keep episodes.

The format is a plain tar of small files, so that other programs can read it:

    manifest.json               format, version, space, tenant, L and d
    00000/episodes.ndjson       a line per episode: all but its vectors
    00000/vectors.safetensors   in that order: `keys` (n, d) float32, `latents` (n, L, d) float16
    00000/SHA256SUMS            of these two, as sha256sum(1) reads it
    00001/…
    end.json                    how many episodes and parts there are

One memory gives the same bytes each time. A part is taken when its sums are right; an archive without its end
was cut off.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.numpy import load, save

from memory.episode import Episode, EpisodeRejectedError, LatentMemoryError, StoreUnavailableError
from memory.free_space import NoRoomError
from memory.record import check_batch, episode_of
from memory.store import EpisodeStore

FORMAT, VERSION = "latentevolve-memory", 1
MANIFEST, END = "manifest.json", "end.json"
EPISODES, VECTORS, SUMS = _FILES = ("episodes.ndjson", "vectors.safetensors", "SHA256SUMS")

MOST_EPISODES = 256
"""Of one part."""
PART_BYTES = 16 * 2**20
"""About what the vectors and tokens of one part take in memory, unless one episode takes more."""
LARGEST_FILE = 64 * 2**20
"""Longest file of an archive that is read; ours are shorter."""
LONGEST_JSON = 16 * 2**20
"""Bytes of an episode's line, or of a file that is JSON: read at once they take 25 times as much memory."""

_BLOCK = tarfile.BLOCKSIZE
_UNREADABLE = (
    SafetensorError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""What taking apart a part raises that is none."""


class ArchiveError(LatentMemoryError):
    """An archive that cannot be taken; says what was taken of it before.

    ArchiveError
    └── OtherSpaceError   it is of another latent space
    """


class OtherSpaceError(ArchiveError):
    """The archive is of another latent space; names both."""


@dataclass(frozen=True)
class Memory:
    """Whose episodes go into an archive, or come out of one."""

    space: str
    """Id of the latent space."""
    tenant: str
    length: int
    """L of a latent, (L, d)."""
    hidden_size: int
    """d."""

    @property
    def manifest(self) -> dict[str, Any]:
        """What an archive of it begins with."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "space": self.space,
            "tenant": self.tenant,
            "latent_length": self.length,
            "hidden_size": self.hidden_size,
        }


def archive_of(store: EpisodeStore, memory: Memory) -> Iterator[bytes]:
    """Yield the archive of a tenant's episodes, piece by piece; blocks while the store is asked.

    Raises:
        StoreUnavailableError: the store failed; what was given is an archive that is cut off.
    """
    yield _file(MANIFEST, _json(memory.manifest))
    vectors = memory.hidden_size * (4 * memory.length + 4)
    batch = max(1, min(MOST_EPISODES, PART_BYTES // vectors))
    part: list[Episode] = []
    parts = episodes = size = 0
    for episode in store.scroll(tenant=memory.tenant, batch=batch):
        part.append(episode)
        episodes += 1
        size += vectors + 8 * (len(episode.prompt_token_ids) + len(episode.answer_token_ids))
        if len(part) == MOST_EPISODES or size >= PART_BYTES:
            yield _part(parts, part)
            parts, size, part = parts + 1, 0, []
    if part:
        yield _part(parts, part)
        parts += 1
    yield _file(END, _json({"episodes": episodes, "parts": parts})) + bytes(2 * _BLOCK)


@dataclass
class Taken:
    """What was taken of an archive."""

    episodes: int = 0
    """In it, so far."""
    added: int = 0
    skipped: int = 0
    """There already, by id."""

    def __str__(self) -> str:
        return f"{self.added} episodes were taken and {self.skipped} were there already"


class Taking:
    """An archive on its way into a store. Episodes whose id is there are left as they are.

    Args:
        store: Where its episodes go.
        memory: What they become part of.
        owner: Tenant whose archive it is, where that is another one, who has handed it over; None: the same.

    Raises, from every method:
        OtherSpaceError, ArchiveError: it cannot be taken; what was taken stays.
        NoRoomError, StoreUnavailableError: the same, for the store failed. Taken again, it goes on.
    """

    def __init__(self, store: EpisodeStore, memory: Memory, owner: str | None = None) -> None:
        self._store, self._memory = store, memory
        self._from = replace(memory, tenant=memory.tenant if owner is None else owner)
        self._buffer = bytearray()
        self._manifest: dict[str, Any] | None = None
        self._files: dict[str, bytes] = {}
        self._parts = 0
        self._ended = False
        self.taken = Taken()

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the archive; blocks while the store is asked."""
        self._buffer += piece
        while not self._ended:
            found = self._next_file()
            if found is None:
                return
            self._take(*found)
        self._buffer.clear()  # what tar fills its last record with

    def finish(self) -> Taken:
        """Return what was taken of all there is."""
        if not self._ended:
            what = "the archive is cut off" if self._manifest else "there is no archive"
            self._refuse(f"{what}: it ends after {self.taken.episodes} episodes")
        return self.taken

    def _next_file(self) -> tuple[str, bytes] | None:
        """Return name and content of the next file; None: not all of it is there."""
        while len(self._buffer) >= _BLOCK:
            try:
                info = tarfile.TarInfo.frombuf(bytes(self._buffer[:_BLOCK]), "utf-8", "strict")
            except (tarfile.HeaderError, UnicodeDecodeError) as error:
                self._refuse(f"this is no archive of a memory, or a damaged one: {error}", error)
            if not (info.isreg() or info.isdir()) or not 0 <= info.size <= LARGEST_FILE:
                self._refuse(f"{info.name!r} is no file of an archive of a memory")
            end = _BLOCK + info.size
            whole = end + -end % _BLOCK
            if len(self._buffer) < whole:
                return None
            content = bytes(self._buffer[_BLOCK:end])
            del self._buffer[:whole]
            if info.isreg():
                return info.name, content
        return None

    def _take(self, name: str, content: bytes) -> None:
        if self._manifest is None:
            self._begin(name, content)
        elif name == END:
            self._end(content)
        elif name == f"{self._parts:05d}/{_FILES[len(self._files)]}":
            self._files[_FILES[len(self._files)]] = content
            if len(self._files) == len(_FILES):
                self._take_part(self._files)
                self._files, self._parts = {}, self._parts + 1
        else:
            self._refuse(f"{name!r} is not what comes next")

    def _begin(self, name: str, content: bytes) -> None:
        found = self._read_json(name, content) if name == MANIFEST else {}
        if found.get("format") != FORMAT:
            self._refuse(f"this is no archive of a memory: it does not begin with {MANIFEST} of {FORMAT}")
        if found.get("version") != VERSION:
            self._refuse(f"the archive is of version {found.get('version')!r}; version {VERSION} can be read")
        theirs, own = found.get("space"), self._memory.space
        if theirs != own:
            raise OtherSpaceError(
                f"the archive is of space {theirs}, this server serves space {own}: another model, chat "
                "template or length of latents; nothing was taken"
            )
        expected = self._from.manifest
        wrong = [key for key, value in expected.items() if found.get(key) != value]
        if wrong == ["tenant"]:
            self._refuse(
                f"the archive is tenant {found.get('tenant')!r}'s, not {self._from.tenant!r}'s; one that was "
                "handed over is taken by naming its tenant"
            )
        if wrong:
            self._refuse(f"{wrong[0]} is {found.get(wrong[0])!r}, expected {expected[wrong[0]]!r}")
        self._manifest = found

    def _end(self, content: bytes) -> None:
        found = self._read_json(END, content)
        there = {"episodes": self.taken.episodes, "parts": self._parts}
        if self._files or found != there:
            self._refuse(f"{END} says {found}, but there are {there}")
        self._ended = True

    def _take_part(self, files: Mapping[str, bytes]) -> None:
        if files[SUMS] != _sums(files):
            self._refuse(f"part {self._parts} is damaged: its sums are wrong")
        try:
            episodes = _episodes(files[EPISODES], files[VECTORS])
            memory = self._from
            check_batch(episodes, space=memory.space, length=memory.length, hidden_size=memory.hidden_size)
            others = {episode.tenant for episode in episodes} - {memory.tenant}
            if others:
                raise ValueError(f"tenant is {others.pop()!r}, expected {memory.tenant!r}")
        except _UNREADABLE as error:
            self._refuse(f"part {self._parts} cannot be read: {error}", error)
        if memory.tenant != self._memory.tenant:
            episodes = [one.adopted(self._memory.tenant) for one in episodes]
        self._store_all(episodes)

    def _store_all(self, episodes: Sequence[Episode]) -> None:
        try:
            there = {outline.id for outline in self._store.outlines_of([one.id for one in episodes])}
            new = [episode for episode in episodes if episode.id not in there]
            self._store.add(new)
        except (NoRoomError, StoreUnavailableError) as error:
            raise type(error)(
                f"{error}; {self.taken} before that, take the archive again to go on"
            ) from error
        except EpisodeRejectedError as error:
            self._refuse(f"part {self._parts} is refused: {error}", error)
        self.taken.episodes += len(episodes)
        self.taken.added += len(new)
        self.taken.skipped += len(episodes) - len(new)

    def _read_json(self, name: str, content: bytes) -> dict[str, Any]:
        if len(content) > LONGEST_JSON:
            self._refuse(f"{name} has {len(content):,} bytes; {LONGEST_JSON:,} are the most")
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            self._refuse(f"{name} is no JSON: {error}", error)
        return found if isinstance(found, dict) else {}

    def _refuse(self, why: str, error: Exception | None = None) -> NoReturn:
        raise ArchiveError(f"{why}; {self.taken}") from error


def _episodes(lines: bytes, vectors: bytes) -> list[Episode]:
    arrays = load(vectors)
    keys, latents = arrays["keys"], arrays["latents"]
    if keys.dtype != np.float32 or latents.dtype != np.float16:
        raise ValueError(f"keys and latents are {keys.dtype} and {latents.dtype}, expected float32, float16")
    split = lines.splitlines()
    if len(split) > MOST_EPISODES or any(len(line) > LONGEST_JSON for line in split):
        most = f"{MOST_EPISODES} are the most, or one of more than {LONGEST_JSON:,} bytes"
        raise ValueError(f"it has {len(split)} episodes, {most}")
    if not len(split) == len(keys) == len(latents):
        raise ValueError(f"{len(split)} episodes have {len(keys)} keys and {len(latents)} latents")
    return [_episode(line, key, latent) for line, key, latent in zip(split, keys, latents, strict=True)]


def _episode(line: bytes, key: ArrayLike, latent: ArrayLike) -> Episode:
    row = json.loads(line, parse_constant=_no_number)
    _check_types(row)
    return episode_of(row.pop("id"), row, key, latent)


_OPTIONAL_TEXT = (str, type(None))
_NUMBER = (int, float)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "space": str,
    "reward": _NUMBER,
    "plain_reward": _NUMBER,
    "signals": dict,
    "latent_earned": bool,
    "start_lift": (*_NUMBER, type(None)),
    "choices": list,
    "choice_log_probabilities": list,
    "max_tokens": (int, type(None)),
    "prior_version": _OPTIONAL_TEXT,
    "trace_id": _OPTIONAL_TEXT,
    "created_at": str,
    "seen": int,
    "seen_at": _OPTIONAL_TEXT,
}
"""Of what `check_batch` takes for granted."""


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check_types(row: dict[str, Any]) -> None:
    for name, kind in _TYPES.items():
        if not isinstance(row[name], kind):
            raise ValueError(f"{name} is {row[name]!r:.80}")
    if not all(isinstance(choice, str) for choice in row["choices"]):
        raise ValueError("choices are not all text")


def _part(number: int, episodes: Sequence[Episode]) -> bytes:
    summaries = [episode.summary() for episode in episodes]
    files = {
        EPISODES: b"".join(map(_json, summaries)),
        VECTORS: save(
            {
                "keys": np.stack([np.asarray(episode.key, np.float32) for episode in episodes]),
                "latents": np.stack([np.asarray(episode.latent, np.float16) for episode in episodes]),
            }
        ),
    }
    files[SUMS] = _sums(files)
    return b"".join(_file(f"{number:05d}/{name}", files[name]) for name in _FILES)


def _sums(files: Mapping[str, bytes]) -> bytes:
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in (EPISODES, VECTORS)]
    return "".join(lines).encode()


def _file(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % _BLOCK)


def _json(values: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(values, ensure_ascii=False, allow_nan=False)}\n".encode()
