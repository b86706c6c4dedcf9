"""An archive is the memory, bit for bit, or it says what of it was taken."""

import io
import json
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from qdrant_client import QdrantClient
from safetensors.numpy import load

from memory import archive
from memory.archive import END, ArchiveError, Memory, OtherSpaceError, Taken, Taking, archive_of
from memory.edge_store import EdgeStore
from memory.episode import Episode, StoreUnavailableError
from memory.free_space import UNLIMITED, FreeSpace, NoRoomError
from memory.qdrant_store import QdrantStore
from memory.store import EpisodeStore, Outline
from tests.memory.conftest import HIDDEN, LENGTH, SPACE

Make = Callable[..., Episode]
MEMORY = Memory(SPACE, "default", LENGTH, HIDDEN)


class Disk(FreeSpace):
    """A disk that can be full."""

    full = False

    def free(self) -> int:
        return 0 if self.full else super().free()


def edge_store(folder: Path, room: FreeSpace = UNLIMITED) -> EdgeStore:
    return EdgeStore(folder, space=SPACE, length=LENGTH, hidden_size=HIDDEN, room=room)


@pytest.fixture(params=["edge", "local"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], EpisodeStore]]:
    """Makes empty stores of one kind."""
    stores: list[EpisodeStore] = []

    def empty() -> EpisodeStore:
        if request.param == "edge":
            store: EpisodeStore = edge_store(tmp_path / f"store-{len(stores)}")
        else:
            client = QdrantClient(":memory:")
            store = QdrantStore(client, space=SPACE, length=LENGTH, hidden_size=HIDDEN)
        stores.append(store)
        return store

    yield empty
    for store in stores:
        store.close()


def taken(store: EpisodeStore, stream: bytes, step: int = 10_000) -> Taken:
    taking = Taking(store, MEMORY)
    for at in range(0, len(stream), step):
        taking.feed(stream[at : at + step])
    return taking.finish()


def files_of(stream: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def same(one: bytes, other: bytes, store: EpisodeStore) -> bool:
    """Whether two archives are the same, bit for bit; but for keys out of qdrant-client's local mode.

    That one normalises again what is of norm 1, which Qdrant itself does not.
    """
    if isinstance(store, EdgeStore):
        return one == other
    vectors = [
        [load(content) for name, content in files_of(each).items() if name.endswith(".safetensors")]
        for each in (one, other)
    ]
    rows = [
        {name: content for name, content in files_of(each).items() if name.endswith("json")}
        for each in (one, other)
    ]
    return rows[0] == rows[1] and all(
        np.allclose(mine["keys"], theirs["keys"], atol=1e-6)
        and mine["latents"].tobytes() == theirs["latents"].tobytes()
        for mine, theirs in zip(*vectors, strict=True)
    )


def archive_with(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def filled(store: EpisodeStore, make: Make, count: int) -> bytes:
    """Return the archive of a store with so many episodes of all kinds, and of another tenant's that stay."""
    rng = np.random.default_rng(5)
    store.add(
        [
            make(
                reward=float(rng.random()),
                choices=("yes", "nö") if number % 2 else (),
                choice_log_probabilities=(-0.1, float(-rng.random())) if number % 2 else (),
                start_lift=float(rng.normal() / 9) if number % 3 else None,
                prompt_text=f"line\nend\r \u2028 {number}",
                prompt_token_ids=tuple(rng.integers(0, 9, size=number).tolist()),
                seen=1 + number,
            )
            for number in range(count)
        ]
    )
    store.add([make(tenant="other")])
    return b"".join(archive_of(store, MEMORY))


def test_a_memory_comes_back_bit_for_bit_and_adds_up(
    another: Callable[[], EpisodeStore], make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_EPISODES", 8)
    first, second = another(), another()
    stream = filled(first, make_episode, 43)
    assert json.loads(files_of(stream)["end.json"]) == {"episodes": 43, "parts": 6}
    assert first.stats(tenant="default").episodes == 43
    for step in (1_000_000, 997):
        store = another()
        assert taken(store, stream, step) == Taken(43, 43, 0)
        assert same(b"".join(archive_of(store, MEMORY)), stream, store)
        assert store.stats() == first.stats(tenant="default")
    assert taken(second, stream) == Taken(43, 43, 0)
    assert taken(second, stream) == Taken(43, 0, 43)
    for one, other in zip(first.scroll(tenant="default"), second.scroll(), strict=True):
        assert one.summary() == other.summary()
        assert np.allclose(one.key, other.key, atol=1e-6)
        assert one.latent.tobytes() == other.latent.tobytes()


FINITE = st.floats(-10, 10, width=16)
EPISODES = st.lists(
    st.fixed_dictionaries(
        {
            "latent": arrays(np.float32, (LENGTH, HIDDEN), elements=FINITE),
            "reward": st.floats(0, 1),
            "signals": st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.floats(0, 1)),
            "prompt_text": st.text(st.characters(codec="utf-8")),
            "answer_text": st.text(st.characters(codec="utf-8")),
            "prompt_token_ids": st.lists(st.integers(0, 2**31 - 1), max_size=9).map(tuple),
            "choices": st.lists(st.text(st.characters(codec="utf-8")), max_size=3).map(tuple),
            "start_lift": st.none() | st.floats(-1, 1),
            "max_tokens": st.none() | st.integers(1, 10**6),
            "latent_earned": st.booleans(),
        }
    ),
    max_size=6,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=EPISODES, cuts=st.lists(st.integers(1, 5000), min_size=1, max_size=9), share=st.floats(0, 1))
def test_whatever_is_remembered_comes_back_however_it_arrives(
    make_episode: Make, fields: list[dict[str, Any]], cuts: list[int], share: float
) -> None:
    def empty() -> QdrantStore:
        return QdrantStore(QdrantClient(":memory:"), space=SPACE, length=LENGTH, hidden_size=HIDDEN)

    with closing(empty()) as first, closing(empty()) as second:
        first.add([make_episode(**each) for each in fields])
        stream = b"".join(archive_of(first, MEMORY))
        taking, sizes, at = Taking(second, MEMORY), cycle(cuts), 0
        end = int(share * stream.index(END.encode()))
        while at < end:  # a connection that breaks
            size = min(next(sizes), end - at)
            taking.feed(stream[at : at + size])
            at += size
        with pytest.raises(ArchiveError):
            taking.finish()
        there = second.count()
        assert taken(second, stream, cuts[0]) == Taken(len(fields), len(fields) - there, there)
        assert same(b"".join(archive_of(second, MEMORY)), stream, second)


def test_an_empty_memory_is_an_archive_too(another: Callable[[], EpisodeStore]) -> None:
    stream = b"".join(archive_of(another(), MEMORY))
    assert set(files_of(stream)) == {"manifest.json", "end.json"}
    assert taken(another(), stream) == Taken(0, 0, 0)


def test_what_is_there_stays_as_it_is(another: Callable[[], EpisodeStore], make_episode: Make) -> None:
    store = another()
    stream = filled(store, make_episode, 5)
    first = next(store.scroll(tenant="default"))
    store.delete([first.id])
    store.add([replace(first, reward=1.0, answer_text="better since")])
    assert taken(store, stream) == Taken(5, 0, 5)
    kept = store.get(first.id)
    assert kept is not None
    assert kept.answer_text == "better since"


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.99])
def test_an_archive_that_is_cut_off_says_what_was_taken_and_is_gone_on_with(
    another: Callable[[], EpisodeStore], make_episode: Make, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(archive, "MOST_EPISODES", 3)
    stream, store = filled(another(), make_episode, 20), another()
    end = stream.index(b"end.json")
    with pytest.raises(ArchiveError) as caught:
        taken(store, stream[: int(share * end)])
    there = store.count()
    assert f"{there} episodes were taken" in str(caught.value)
    assert there % 3 == 0
    assert taken(store, stream) == Taken(20, 20 - there, there)
    assert same(b"".join(archive_of(store, MEMORY)), stream, store)


def test_another_space_is_refused_by_the_names_of_both(
    another: Callable[[], EpisodeStore], make_episode: Make
) -> None:
    stream, store = filled(another(), make_episode, 2), another()
    taking = Taking(store, replace(MEMORY, space="space-b"))
    with pytest.raises(OtherSpaceError, match=r"space-a.*space-b"):
        taking.feed(stream)
    assert store.count() == 0


BROKEN: list[tuple[str, Callable[[dict[str, bytes]], object]]] = [
    ("sums are wrong", lambda f: f.update({"00000/episodes.ndjson": f["00000/episodes.ndjson"] + b" "})),
    (
        "sums are wrong",
        lambda f: f.update({"00000/vectors.safetensors": f["00000/vectors.safetensors"][:-1]}),
    ),
    ("not what comes next", lambda f: f.pop("00000/vectors.safetensors")),
    ("not what comes next", lambda f: f.update({"../../etc/passwd": b"x", "end.json": f.pop("end.json")})),
    ("end.json says", lambda f: f.update({"end.json": b'{"episodes": 9, "parts": 1}'})),
    ("end.json is no JSON", lambda f: f.update({"end.json": b"{"})),
    ("does not begin with", lambda f: f.update({"manifest.json": b"[]"})),
    ("version 2", lambda f: f.update({"manifest.json": f["manifest.json"].replace(b": 1,", b": 2,")})),
    ("tenant", lambda f: f.update({"manifest.json": f["manifest.json"].replace(b"default", b"another")})),
    ("latent_length", lambda f: f.update({"manifest.json": f["manifest.json"].replace(b": 4,", b": 5,")})),
]


@pytest.mark.parametrize(("message", "breaking"), BROKEN)
def test_a_broken_archive_is_refused_and_says_what_was_taken(
    another: Callable[[], EpisodeStore],
    make_episode: Make,
    message: str,
    breaking: Callable[[dict[str, bytes]], object],
) -> None:
    files = files_of(filled(another(), make_episode, 3))
    breaking(files)
    store = another()
    with pytest.raises(ArchiveError, match=message) as caught:
        taken(store, archive_with(files))
    assert f"{store.count()} episodes were taken" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "bound", "message"),
    [
        ("LONGEST_JSON", 10, r"manifest.json has \d+ bytes; 10 are the most"),
        ("LONGEST_JSON", 300, r"part 0 cannot be read: it has 3 episodes, .* more than 300 bytes"),
        ("MOST_EPISODES", 2, r"part 0 cannot be read: it has 3 episodes, 2 are the most"),
    ],
)
def test_json_that_would_fill_memory_is_refused(
    another: Callable[[], EpisodeStore],
    make_episode: Make,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    bound: int,
    message: str,
) -> None:
    whole = archive_with(files_of(filled(another(), make_episode, 3)))
    monkeypatch.setattr(archive, name, bound)
    with pytest.raises(ArchiveError, match=message):
        taken(another(), whole)


WRONG: list[tuple[str, object]] = [
    ("id", "no-uuid"),
    ("reward", "high"),
    ("reward", 2),
    ("signals", ["consistency"]),
    ("signals", {"consistency": None}),
    ("choices", [1]),
    ("choice_log_probabilities", [float("-inf")]),
    ("created_at", "yesterday"),
    ("created_at", "2026-01-01"),
    ("created_at", "9999-12-31T23:59:59-12:00"),
    ("seen_at", "0001-01-01T00:00:00+12:00"),
    ("tenant", "other"),
    ("space", "elsewhere"),
    ("prompt_token_ids", ["a"]),
    ("prompt_token_ids", [2**31]),
    ("answer_token_ids", []),
    ("latent_earned", 1),
    ("seen", "often"),
    ("unknown", 1),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_part_with_a_wrong_row_is_refused_by_name_and_not_taken(
    another: Callable[[], EpisodeStore], make_episode: Make, field: str, value: object
) -> None:
    files = files_of(filled(another(), make_episode, 3))
    rows = [json.loads(line) for line in files["00000/episodes.ndjson"].splitlines()]
    rows[1][field] = value
    files["00000/episodes.ndjson"] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    names = ("episodes.ndjson", "vectors.safetensors")
    files["00000/SHA256SUMS"] = archive._sums({name: files[f"00000/{name}"] for name in names})
    store = another()
    with pytest.raises(ArchiveError, match=r"part 0 (cannot be read|is refused)"):
        taken(store, archive_with(files))
    assert store.count() == 0


@pytest.mark.parametrize("stream", [b"", b"x" * 600, bytes(2048), b"PK\x03\x04" + bytes(600)])
def test_what_is_no_archive_is_told_from_one(another: Callable[[], EpisodeStore], stream: bytes) -> None:
    with pytest.raises(ArchiveError, match="no archive"):
        taken(another(), stream)


def test_a_store_that_fails_half_way_says_what_was_taken(
    tmp_path: Path, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_EPISODES", 2)
    disk = Disk(tmp_path, 1)
    with closing(edge_store(tmp_path / "one")) as one, closing(edge_store(tmp_path / "two", disk)) as two:
        stream = filled(one, make_episode, 6)
        taking = Taking(two, MEMORY)
        middle = stream.index(b"00001/SHA256SUMS")
        taking.feed(stream[:middle])
        disk.full = True
        with pytest.raises(NoRoomError, match="2 episodes were taken"):
            taking.feed(stream[middle:])
        disk.full = False
        assert taken(two, stream) == Taken(6, 4, 2)
    taking = Taking(two, MEMORY)
    with pytest.raises(StoreUnavailableError, match="0 episodes were taken"):
        taking.feed(stream)


class Endless:
    """As much of a store as an archive needs: it makes episodes as they are asked for, and keeps none."""

    def __init__(self, make: Make, count: int) -> None:
        self._make, self._count = make, count
        self.added = 0

    def scroll(self, *, tenant: str | None = None, batch: int = 256) -> Iterator[Episode]:
        for _ in range(self._count):
            yield self._make()

    def outlines_of(self, episode_ids: Sequence[str]) -> list[Outline]:
        return []

    def add(self, episodes: Sequence[Episode]) -> None:
        self.added += len(episodes)


def test_memory_that_is_needed_does_not_grow_with_the_archive(
    make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_EPISODES", 16)

    def peak(count: int) -> int:
        store = cast(EpisodeStore, Endless(make_episode, count))
        taking = Taking(store, MEMORY)
        tracemalloc.start()
        for piece in archive_of(store, MEMORY):
            taking.feed(piece)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert taking.finish() == Taken(count, count, 0)
        return found

    peak(16)  # what is imported and cached at the first time
    assert peak(640) < 1.5 * peak(64)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_other_programs_can_read_and_check_it(tmp_path: Path, make_episode: Make) -> None:
    with closing(edge_store(tmp_path / "store")) as store:
        (tmp_path / "memory.tar").write_bytes(filled(store, make_episode, 3))
    with tarfile.open(tmp_path / "memory.tar") as tar:
        tar.extractall(tmp_path / "out", filter="data")
    subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "out" / "00000", check=True)
