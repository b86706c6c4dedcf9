"""What Qdrant Edge keeps when its process dies, is shared, or finds its files spoilt."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import qdrant_edge as edge

import memory.edge_shard
from memory.edge_shard import FIRST, FLUSH_EVERY, POINTER
from memory.edge_store import EdgeStore
from memory.episode import Episode, EpisodeRejectedError, StoreUnavailableError
from memory.free_space import FreeSpace
from memory.record import KEY, LATENT, payload_of, vectors_of
from tests.memory.conftest import recall_from

VICTIM = Path(__file__).with_name("store_victim.py")
ROOT = Path(__file__).parents[2]
LENGTH, HIDDEN = 4, 32

Make = Callable[..., Episode]


def open_edge(folder: Path, index_from: int = 10_000) -> EdgeStore:
    return EdgeStore(folder, space="space-a", length=LENGTH, hidden_size=HIDDEN, index_from=index_from)


def start_victim(
    folder: Path, seed: int, flush_every: int, index_from: int = 10_000, pause_s: float = 0.0
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, VICTIM, *map(str, (folder, seed, flush_every, index_from, pause_s))],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize(
    ("flush_every", "index_from"),
    [(5, 10_000), (1_000_000, 10_000), (5, 10)],
    ids=["flushing", "never flushed", "building graphs"],
)
def test_kill_9_loses_no_acknowledged_episode(tmp_path: Path, flush_every: int, index_from: int) -> None:
    folder = tmp_path / "space-a"
    chance = random.Random(flush_every)
    acknowledged: dict[int, str] = {}
    swaps = 0
    builds = index_from < 10_000
    for round_number in range(3 if builds else 5):
        in_use = shard_of(folder)
        until_swap = builds and round_number != 1
        # A graph takes a while, in which thousands would be added that all have to be looked at.
        pause_s = 0.01 if until_swap else 0.0
        victim = start_victim(folder, 100_000 * round_number, flush_every, index_from, pause_s)
        assert victim.stdout is not None
        before = len(acknowledged)
        enough, killer = chance.randint(5, 40), None
        for line in victim.stdout:
            if line.endswith("\n") and line != "ready\n":
                seed, episode_id = line.split()
                acknowledged[int(seed)] = episode_id
            if until_swap and shard_of(folder) == in_use:
                continue
            if killer is None and len(acknowledged) - before >= enough:
                # The stream of adds is under way when the signal comes, wherever in an add that is; and where
                # a graph is built, before, or just after an indexed copy took over.
                killer = threading.Timer(chance.uniform(0.0, 0.05), victim.send_signal, [signal.SIGKILL])
                killer.start()
        assert killer is not None
        assert victim.wait() == -signal.SIGKILL
        victim.stdout.close()
        killer.join()
        swaps += shard_of(folder) != in_use

        store = open_edge(folder)
        for seed, episode_id in acknowledged.items():
            rng = np.random.default_rng(seed)
            key = rng.normal(size=HIDDEN).astype(np.float32)
            latent = rng.normal(size=(LENGTH, HIDDEN)).astype(np.float32)
            stored = store.get(episode_id)
            assert stored is not None
            assert np.array_equal(stored.latent, latent.astype(np.float16).astype(np.float32))
            assert stored.key == pytest.approx(key / np.linalg.norm(key), abs=1e-6)
            assert stored.answer_token_ids == (seed,)
            assert len(stored.answer_text) == seed * 37 % 3000
        everything = {episode.id for episode in store.scroll()}
        assert set(acknowledged.values()) <= everything
        assert store.count() == len(everything)
        newest = max(acknowledged)
        found = store.get(acknowledged[newest])
        assert found is not None
        assert recall_from(store, found.key, tenant="default", k=1, floor=0.99)[0].episode.id == found.id
        store.close()
    assert swaps >= 2 if builds else swaps == 0


def shard_of(folder: Path) -> str:
    """Return the name of the folder that holds the truth."""
    pointer = folder / POINTER
    return str(json.loads(pointer.read_text())["shard"]) if pointer.exists() else FIRST


def test_a_second_process_is_told_which_folder_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "space-a"
    victim = start_victim(folder, 0, 512)
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        with pytest.raises(StoreUnavailableError, match=f"{folder} is in use by another process"):
            open_edge(folder)
    finally:
        victim.kill()
        victim.communicate()
    open_edge(folder).close()


def test_one_process_cannot_open_a_folder_twice(tmp_path: Path) -> None:
    store = open_edge(tmp_path)
    with pytest.raises(StoreUnavailableError, match="in use"):
        open_edge(tmp_path)
    store.close()
    open_edge(tmp_path).close()


def test_a_half_made_shard_is_made_again(tmp_path: Path) -> None:
    # What a death during the very first start leaves: the shard is renamed into place when complete.
    (tmp_path / "new-1234" / "wal").mkdir(parents=True)
    store = open_edge(tmp_path)
    assert store.count() == 0
    store.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", "shard"]


@pytest.mark.parametrize("spoilt", ["edge_config.json", "segment.json", "first-index", "chunk_0.mmap"])
def test_spoilt_files_are_an_error_that_names_the_folder(
    tmp_path: Path, make_episode: Make, spoilt: str
) -> None:
    episode = make_episode()
    store = open_edge(tmp_path)
    store.add([episode])
    store.close()
    for file in (tmp_path / "shard").rglob(spoilt):
        file.write_bytes(b"spoilt")
    for _ in range(2):  # the lock must have gone with the first failure
        with pytest.raises(StoreUnavailableError, match=f"{tmp_path} failed"):
            read_once(tmp_path, episode.id)


def read_once(folder: Path, episode_id: str) -> None:
    # Spoilt vectors are noticed by the first read, which is a panic inside Edge.
    store = open_edge(folder)
    try:
        store.get(episode_id)
    finally:
        store.close()


def shard_of_an_earlier_build(folder: Path, episodes: list[Episode]) -> None:
    """Leave a memory that keeps latents as vectors, and no sketches."""
    (folder / FIRST).mkdir(parents=True)
    shard = edge.EdgeShard.create(
        str(folder / FIRST),
        edge.EdgeConfig(
            vectors={
                KEY: edge.EdgeVectorParams(HIDDEN, edge.Distance.Cosine),
                LATENT: edge.EdgeVectorParams(
                    HIDDEN,
                    edge.Distance.Dot,
                    multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
                    datatype=edge.VectorStorageDatatype.Float16,
                ),
            }
        ),
    )
    points = [edge.Point(e.id, vectors_of(e), payload_of(e)) for e in episodes]
    shard.update(edge.UpdateOperation.upsert_points(points))
    shard.close()


def test_episodes_of_an_earlier_build_are_written_anew_once(
    tmp_path: Path, make_episode: Make, caplog: pytest.LogCaptureFixture
) -> None:
    episodes = [make_episode(prior_version="v1", choices=("yes", "no")) for _ in range(150)]
    shard_of_an_earlier_build(tmp_path, episodes)
    for again in (False, True):
        caplog.clear()
        store = open_edge(tmp_path)
        assert ("written anew" in caplog.text) is not again
        kept = {episode.id: episode for episode in store.scroll()}
        assert kept.keys() == {episode.id for episode in episodes}
        for episode in episodes:
            stored = kept[episode.id]
            assert stored.summary() == episode.summary()
            assert stored.key == pytest.approx(episode.key, abs=1e-6)
            assert np.array_equal(stored.latent, episode.latent.astype(np.float16))
        assert [[one] for one in kept] == nearest(store, list(kept.values()), k=1)
        assert len(list(tmp_path.glob("shard*"))) == 1
        store.close()


def test_an_earlier_build_waits_for_the_room_to_be_written_anew(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode()
    shard_of_an_earlier_build(tmp_path, [episode])
    crowded = FreeSpace(tmp_path, psutil.disk_usage(str(tmp_path)).free // 2**20 * 2)
    store = EdgeStore(tmp_path, space="space-a", length=LENGTH, hidden_size=HIDDEN, room=crowded)
    with pytest.raises(StoreUnavailableError, match="is shut"):
        store.count()
    store.close()
    assert only_episode(tmp_path) == episode.id


def test_threads_add_and_recall_at_once(tmp_path: Path, make_episode: Make) -> None:
    store = open_edge(tmp_path)
    episodes = [make_episode(tenant=f"tenant-{i % 4}") for i in range(160)]

    def add_and_recall(worker: int) -> None:
        for episode in episodes[worker * 20 : (worker + 1) * 20]:
            store.add([episode])
            recalled = recall_from(store, episode.key, tenant=episode.tenant, k=3, floor=0.99)
            assert episode.id in [r.episode.id for r in recalled]
            assert {r.episode.tenant for r in recalled} == {episode.tenant}
            store.stats(tenant=episode.tenant)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_and_recall, range(8)))
    assert store.count() == 160
    assert store.stats().episodes == 160
    assert sum(store.stats(tenant=f"tenant-{i}").episodes for i in range(4)) == 160
    store.close()


def test_closing_while_others_read_ends_them_cleanly(tmp_path: Path, make_episode: Make) -> None:
    store = open_edge(tmp_path)
    episode = make_episode()
    store.add([episode])
    unexpected: list[BaseException] = []

    def read() -> None:
        try:
            while True:
                recall_from(store, episode.key, tenant="default", k=1, floor=0.5)
        except StoreUnavailableError:
            pass
        except BaseException as exc:
            unexpected.append(exc)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    time.sleep(0.05)
    store.close()
    for reader in readers:
        reader.join(10)
        assert not reader.is_alive()
    assert unexpected == []


def test_a_graph_changes_no_answer(tmp_path: Path, make_episode: Make) -> None:
    store = open_edge(tmp_path)
    episodes = [make_episode() for _ in range(300)]
    store.add(episodes)
    before = nearest(store, episodes[:20])
    store.close()
    store = open_edge(tmp_path, index_from=100)
    assert store.settle(60)
    assert store.indexed() >= 300
    store.add([make_episode(tenant="other")])
    assert nearest(store, episodes[:20]) == before
    assert {e.id for e in store.scroll(tenant="default")} == {e.id for e in episodes}
    store.close()
    store = open_edge(tmp_path)
    assert (store.count(), nearest(store, episodes[:20])) == (301, before)
    store.close()


def test_a_store_that_grows_builds_its_graph_without_being_opened_again(
    tmp_path: Path, make_episode: Make
) -> None:
    store = open_edge(tmp_path, index_from=FLUSH_EVERY)
    store.add([make_episode() for _ in range(FLUSH_EVERY)])
    assert store.settle(60)
    assert store.indexed() == FLUSH_EVERY
    store.close()


def test_what_came_while_a_graph_was_built_gets_one_too(tmp_path: Path, make_episode: Make) -> None:
    store = open_edge(tmp_path)
    store.add([make_episode() for _ in range(300)])
    store.close()
    store = open_edge(tmp_path, index_from=100)
    builder = builder_of(tmp_path)
    builder.suspend()
    try:
        store.add([make_episode() for _ in range(150)])
    finally:
        builder.resume()
    assert store.settle(60)
    assert store.indexed() == 450
    store.close()


def test_a_graph_is_built_again_for_a_tenth_of_the_memory(tmp_path: Path, make_episode: Make) -> None:
    store = open_edge(tmp_path)
    store.add([make_episode() for _ in range(300)])
    store.close()
    for new, reached in ((0, 300), (20, 300), (20, 340)):
        store = open_edge(tmp_path, index_from=10)
        store.add([make_episode() for _ in range(new)])
        store.close()
        store = open_edge(tmp_path, index_from=10)
        assert store.settle(60)
        assert store.indexed() == reached
        store.close()


def test_reads_and_writes_go_on_while_a_graph_is_built(tmp_path: Path, make_episode: Make) -> None:
    store = open_edge(tmp_path)
    episodes = [make_episode() for _ in range(300)]
    store.add(episodes)
    store.close()
    store = open_edge(tmp_path, index_from=100)
    builder = builder_of(tmp_path)
    builder.suspend()
    try:
        late = make_episode()
        store.add([late])
        assert store.delete([episodes[0].id]) == 1
        assert store.near(late.key, tenant="default", k=1, floor=0.9)[0].id == late.id
        assert store.get(episodes[0].id) is None
        assert not store.settle(0)
    finally:
        builder.resume()
    assert store.settle(60)
    assert store.indexed() >= 299
    kept = {episode.id for episode in (*episodes[1:], late)}
    assert {episode.id for episode in store.scroll()} == kept
    store.close()
    assert len(list(tmp_path.glob("shard*"))) == 1
    store = open_edge(tmp_path)
    assert {episode.id for episode in store.scroll()} == kept
    store.close()


def test_a_graph_that_cannot_be_built_costs_no_episode(tmp_path: Path, make_episode: Make) -> None:
    store = open_edge(tmp_path)
    episodes = [make_episode() for _ in range(300)]
    store.add(episodes)
    store.close()
    store = open_edge(tmp_path, index_from=100)
    builder_of(tmp_path).kill()
    assert store.settle(60)
    assert store.indexed() == 0
    assert {episode.id for episode in store.scroll()} == {episode.id for episode in episodes}
    assert [path.name for path in tmp_path.glob("shard*")] == ["shard"]
    store.close()


def test_closing_does_not_wait_for_a_graph(tmp_path: Path, make_episode: Make) -> None:
    store = open_edge(tmp_path)
    store.add([make_episode() for _ in range(300)])
    store.close()
    store = open_edge(tmp_path, index_from=100)
    builder_of(tmp_path).suspend()
    store.close()  # would wait for ever
    store = open_edge(tmp_path)
    assert store.count() == 300
    store.close()


def nearest(store: EdgeStore, episodes: list[Episode], k: int = 4) -> list[list[str]]:
    return [
        [found.episode.id for found in recall_from(store, episode.key, tenant="default", k=k, floor=0.2)]
        for episode in episodes
    ]


def builder_of(folder: Path) -> psutil.Process:
    """Return the process that builds a graph for a store in `folder`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if any(str(folder) in part for part in child.cmdline()):
                    return child
    raise TimeoutError("no graph is being built")


def test_an_episode_that_edge_refuses_is_told_from_a_store_that_is_away(
    tmp_path: Path, make_episode: Make
) -> None:
    EdgeStore(tmp_path, space="space-a", length=LENGTH, hidden_size=HIDDEN - 1).close()
    store = open_edge(tmp_path)  # whose shard keeps shorter vectors
    for _ in range(2):
        with pytest.raises(EpisodeRejectedError, match="Edge refuses 1 episodes: Vector dimension error"):
            store.add([make_episode()])
    assert store.count() == 0
    store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        store.add([make_episode()])


def indexed_memory(folder: Path, episode: Episode) -> Path:
    """Leave a memory of one episode that a graph was built for, and return where it is."""
    store = open_edge(folder)
    store.add([episode])
    store.close()
    store = open_edge(folder, index_from=1)
    assert store.settle(60)
    store.close()
    [home] = folder.glob("shard-*")
    return home


def only_episode(folder: Path) -> str:
    store = open_edge(folder)
    try:
        [episode] = store.scroll()
    finally:
        store.close()
    return episode.id


def test_only_leftovers_are_deleted_beside_the_shard_that_is_used(
    tmp_path: Path, make_episode: Make, caplog: pytest.LogCaptureFixture
) -> None:
    episode = make_episode()
    home = indexed_memory(tmp_path, episode)
    for name in ("shard", "shard-1234", "new-1234", "backup"):
        (tmp_path / name).mkdir()
    (tmp_path / f".{POINTER}.{'0' * 32}").write_text("{")
    assert only_episode(tmp_path) == episode.id
    assert {path.name for path in tmp_path.iterdir()} == {POINTER, "lock", home.name, "shard", "backup"}
    assert f"{tmp_path / 'shard'} is not used" in caplog.text


def test_nothing_is_deleted_when_the_shard_that_is_named_is_not_there(
    tmp_path: Path, make_episode: Make
) -> None:
    episode = make_episode()
    home = indexed_memory(tmp_path, episode)
    home.rename(tmp_path / "shard-moved")
    with pytest.raises(StoreUnavailableError, match=f"{home}, which is not there"):
        open_edge(tmp_path)
    (tmp_path / "shard-moved").rename(home)
    assert only_episode(tmp_path) == episode.id


def test_nothing_is_deleted_when_the_shard_cannot_be_read(tmp_path: Path, make_episode: Make) -> None:
    home = indexed_memory(tmp_path, make_episode())
    (home / "edge_config.json").write_bytes(b"spoilt")
    (tmp_path / "shard-1234").mkdir()
    with pytest.raises(StoreUnavailableError, match=f"{tmp_path} failed"):
        open_edge(tmp_path)
    assert (tmp_path / "shard-1234").exists()


def test_without_its_pointer_the_only_shard_is_used_and_of_several_none(
    tmp_path: Path, make_episode: Make
) -> None:
    episode = make_episode()
    home = indexed_memory(tmp_path, episode)
    (tmp_path / POINTER).unlink()
    assert only_episode(tmp_path) == episode.id
    (tmp_path / POINTER).unlink()
    (tmp_path / "shard-1234").mkdir()
    with pytest.raises(StoreUnavailableError, match="move all but one of them away"):
        open_edge(tmp_path)
    assert home.is_dir()
    assert (tmp_path / "shard-1234").is_dir()


class Failing:
    """A shard of which some methods fail as Edge does."""

    def __init__(self, shard: Any) -> None:
        self._shard = shard
        self.complaints: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        if name in self.complaints:
            raise RuntimeError(self.complaints[name])
        return getattr(self._shard, name)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[EdgeStore, Failing]]:
    """Opens a store whose shard can be made to fail."""

    def opened(folder: Path) -> tuple[EdgeStore, Failing]:
        loaded: list[Failing] = []

        load = edge.EdgeShard.load

        def load_failing(path: str) -> Failing:
            loaded.append(Failing(load(path)))
            return loaded[-1]

        open_edge(folder).close()
        with monkeypatch.context() as patched:
            patched.setattr(memory.edge_shard.edge, "EdgeShard", SimpleNamespace(load=load_failing))
            return open_edge(folder), loaded[0]

    return opened


Failable = Callable[[Path], tuple[EdgeStore, Failing]]


def test_a_stored_episode_is_not_refused_when_tidying_up_fails(
    tmp_path: Path,
    make_episode: Make,
    failing: Failable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(memory.edge_shard, "FLUSH_EVERY", 1)
    store, shard = failing(tmp_path)
    for method in ("flush", "info"):
        shard.complaints = {method: "cannot be done"}
        episode = make_episode()
        store.add([episode])
        assert store.get(episode.id) is not None
        assert "cannot be done" in caplog.text
        caplog.clear()
    shard.complaints = {}
    store.close()


@pytest.mark.parametrize(
    "complaint", ["Service internal error: No space left on device (os error 28)", "I/O: (os error 5)"]
)
def test_an_episode_waits_when_the_disk_fails_the_store(
    tmp_path: Path, make_episode: Make, failing: Failable, complaint: str
) -> None:
    store, shard = failing(tmp_path)
    shard.complaints = {"update": complaint}
    episode = make_episode()
    with pytest.raises(StoreUnavailableError, match="os error"):
        store.add([episode])
    shard.complaints = {}
    store.add([episode])
    assert store.count() == 1
    store.close()
