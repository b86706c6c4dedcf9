"""Nothing is written where there is no room; reading goes on, and writing once there is some again."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memory import edge_shard
from memory.edge_store import EdgeStore
from memory.episode import Episode, StoreUnavailableError, prompt_id
from memory.free_space import FreeSpace, NoRoomError
from memory.registry import PriorRegistry
from memory.state import State
from tests.memory.full_disk import Disk
from tests.memory.test_store_crash import builder_of
from tests.tables import row

ROOT = Path(__file__).parents[2]
MIB = 2**20

Make = Callable[..., Episode]


def opened(folder: Path, disk: FreeSpace, index_from: int = 10_000) -> EdgeStore:
    return EdgeStore(folder, space="space-a", length=4, hidden_size=32, room=disk, index_from=index_from)


def test_a_floor_above_what_is_free_refuses_and_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    free_mib = FreeSpace(folder, 0).free() // MIB
    FreeSpace(folder, max(free_mib - 1000, 1)).demand("episodes")
    with pytest.raises(
        NoRoomError, match=r"episodes cannot be written: \d+ MiB .* LATENTEVOLVE_MIN_FREE_MIB"
    ):
        FreeSpace(folder, free_mib + 1000).demand("episodes")
    with pytest.raises(NoRoomError):
        FreeSpace(folder, 1).demand("a graph", size=(free_mib + 1000) * MIB)
    FreeSpace(folder, 0).demand("anything", size=2**62)


def test_a_full_disk_refuses_episodes_and_goes_on_reading_until_there_is_room(
    tmp_path: Path, make_episode: Make
) -> None:
    disk = Disk()
    store = opened(tmp_path, disk)
    kept, refused = make_episode(), make_episode()
    store.add([kept])
    disk.free_mib = 99
    with pytest.raises(NoRoomError, match="1 episodes cannot be written: 99 MiB are free"):
        store.add([refused])
    assert [episode.id for episode in store.scroll()] == [kept.id]
    assert store.near(kept.key, tenant="default", k=1, floor=0.9)[0].id == kept.id
    disk.free_mib = 100
    store.add([refused])
    assert store.count() == 2
    store.close()


def test_episodes_can_be_deleted_from_the_reserve(tmp_path: Path, make_episode: Make) -> None:
    disk = Disk()
    store = opened(tmp_path, disk)
    episodes = [make_episode() for _ in range(2)]
    store.add(episodes)
    disk.free_mib = 25
    assert store.delete([episodes[0].id]) == 1
    disk.free_mib = 24
    with pytest.raises(NoRoomError, match="a deletion"):
        store.delete([episodes[1].id])
    assert store.count() == 1
    store.close()


class NoneForDeletions(Disk):
    """A disk that fills up after episodes were written."""

    full = True

    def demand(self, what: str, size: int = 0, *, page: int = 0, reserve: bool = False) -> None:
        if self.full and what == "a deletion":
            raise NoRoomError(what)


def test_a_stored_episode_is_not_refused_when_what_it_replaces_cannot_be_deleted(
    tmp_path: Path, make_episode: Make
) -> None:
    disk = NoneForDeletions()
    store = opened(tmp_path, disk)
    old = make_episode()
    store.add([old])
    new = replace(old, id=prompt_id(old.space, old.tenant, old.prompt_token_ids))
    store.add([new])
    assert {episode.id for episode in store.scroll()} == {old.id, new.id}
    disk.full = False
    store.add([new])
    assert [episode.id for episode in store.scroll()] == [new.id]
    store.close()


def test_a_store_on_a_full_disk_opens_when_there_is_room(tmp_path: Path, make_episode: Make) -> None:
    disk = Disk()
    store = opened(tmp_path, disk)
    episode = make_episode()
    store.add([episode])
    store.close()
    disk.free_mib = 24
    store = opened(tmp_path, disk)
    for ask in (store.count, store.stats, lambda: store.get(episode.id)):
        with pytest.raises(StoreUnavailableError, match="is shut: an episode store cannot be written"):
            ask()
    with pytest.raises(StoreUnavailableError, match="in use"):
        opened(tmp_path, disk)
    disk.free_mib = 25
    assert store.get(episode.id) is not None
    store.close()
    with pytest.raises(StoreUnavailableError, match="is closed"):
        store.count()
    opened(tmp_path, disk).close()


def test_no_graph_is_built_where_there_is_no_room(tmp_path: Path, make_episode: Make) -> None:
    disk = Disk()
    store = opened(tmp_path, disk)
    store.add([make_episode() for _ in range(20)])
    store.close()
    disk.free_mib = 100
    store = opened(tmp_path, disk, index_from=10)
    assert store.settle(60)
    assert (store.indexed(), store.count()) == (0, 20)
    store.close()


class HeldUp(Disk):
    """A disk whose question about a graph, asked by whoever writes, is answered when `answer` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answer = threading.Event(), threading.Event()

    def demand(self, what: str, size: int = 0, *, page: int = 0, reserve: bool = False) -> None:
        if "graph" in what:
            self.asked.set()
            self.answer.wait(30)
        super().demand(what, size, reserve=reserve)


def test_episodes_ask_for_the_room_that_is_left_when_it_is_their_turn(
    tmp_path: Path, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_shard, "FLUSH_EVERY", 5)
    disk = HeldUp()
    store = opened(tmp_path, disk, index_from=5)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.add, [make_episode() for _ in range(5)])
        assert disk.asked.wait(30)
        second = pool.submit(store.add, [make_episode()])
        time.sleep(0.1)  # it waits for the first
        disk.free_mib = 99
        disk.answer.set()
        first.result()
        with pytest.raises(NoRoomError, match="1 episodes"):
            second.result()
    assert store.count() == 5
    store.close()


def test_room_for_a_graph_is_counted_with_the_holes_that_copying_fills(
    tmp_path: Path, make_episode: Make
) -> None:
    disk = Disk()
    store = opened(tmp_path, disk)
    store.add([make_episode() for _ in range(20)])
    store.close()
    apparent = sum(file.stat().st_size for file in (tmp_path / "shard").rglob("*"))
    disk.free_mib = 100 + int(1.5 * apparent / MIB)
    store = opened(tmp_path, disk, index_from=10)
    assert store.settle(60)
    assert store.indexed() == 0
    store.close()
    disk.free_mib = 100 + int(2.5 * apparent / MIB)
    store = opened(tmp_path, disk, index_from=10)
    assert store.settle(60)
    assert store.indexed() == 20
    store.close()


def test_a_graph_is_given_up_when_the_disk_fills_while_it_is_built(
    tmp_path: Path, make_episode: Make
) -> None:
    disk = Disk()
    store = opened(tmp_path, disk)
    store.add([make_episode() for _ in range(20)])
    store.close()
    store = opened(tmp_path, disk, index_from=10)
    builder = builder_of(tmp_path)
    builder.suspend()
    disk.free_mib = 24
    builder.resume()
    assert store.settle(60)
    assert (store.indexed(), store.count()) == (0, 20)
    assert [path.name for path in tmp_path.glob("shard*")] == ["shard"]
    store.close()


def test_a_prior_is_published_from_the_reserve_or_not_at_all(tmp_path: Path, state: State) -> None:
    disk = Disk(free_mib=24)
    registry = PriorRegistry(tmp_path, "space-a", state, disk)
    prior = ([row(np.zeros((2, 8)), np.eye(1, 8))], {})
    with pytest.raises(NoRoomError, match="a prior"):
        registry.publish(*prior)
    assert registry.versions() == []
    disk.free_mib = 30
    assert registry.publish(*prior) == "v1"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 140 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=140m", "tmpfs", str(folder)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a file system, with `mount`")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def said_of(script: str, disk: Path, *, ballast_mib: int) -> list[str]:
    """Return the lines of a script that ran on a disk with a `ballast`, which it deletes."""
    (disk / "ballast").write_bytes(bytes(ballast_mib * MIB))
    ended = subprocess.run(
        [sys.executable, "-c", script, str(disk)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


FILLS = """
import sys
from pathlib import Path
import numpy as np
from memory.edge_store import EdgeStore
from memory.episode import Episode
from memory.free_space import FreeSpace, NoRoomError

folder = Path(sys.argv[1])
store = EdgeStore(folder / "space-a", space="space-a", length=4, hidden_size=32, room=FreeSpace(folder, 24))

def add():
    key = np.eye(1, 32, dtype=np.float32)[0]
    latent, text = np.zeros((4, 32), np.float32), "x" * 200_000
    store.add([Episode("space-a", key, latent, 0.5, {}, (1,), (1,), text, "")])

try:
    for _ in range(1000):
        add()
except NoRoomError as error:
    print(error)
held = store.count()
(folder / "ballast").unlink()
add()
print(held, store.count())
store.close()
"""


def test_a_process_that_fills_a_real_disk_lives_and_stores_again_later(small_disk: Path) -> None:
    said = said_of(FILLS, small_disk, ballast_mib=16)
    refusal, counts = said
    assert "1 episodes cannot be written" in refusal
    held, later = map(int, counts.split())
    assert 0 < held < 1000
    assert later == held + 1


OPENS = """
import sys
from pathlib import Path
from memory.edge_store import EdgeStore
from memory.episode import StoreUnavailableError
from memory.free_space import FreeSpace

folder = Path(sys.argv[1])
store = EdgeStore(folder / "space-a", space="space-a", length=4, hidden_size=32, room=FreeSpace(folder, 24))
try:
    store.count()
except StoreUnavailableError as error:
    print(error)
(folder / "ballast").unlink()
print(store.count())
store.close()
"""


def test_a_process_lives_on_a_disk_without_the_room_for_a_new_store(small_disk: Path) -> None:
    said = said_of(OPENS, small_disk, ballast_mib=80)
    refusal, held = said
    assert "a new episode store cannot be written" in refusal
    assert held == "0"


FILLS_THE_STATE = """
import sys
from pathlib import Path
from memory.free_space import NoRoomError
from memory.night import NightLog
from memory.state import NewTrace, State

folder = Path(sys.argv[1])

def kept(state):
    return sum(state.trace(str(number), latent=False) is not None for number in range(1000))

state = State.in_folder(folder)
log = NightLog(state)
written = 0
try:
    for _ in range(1000):
        state.write_traces([NewTrace(str(written), {}, bytes(1_000_000))], {}, 1000)
        written += 1
except NoRoomError as error:
    print(error)
print(written, kept(state), log.list())
(folder / "ballast").unlink()
log.create("space-a", "api")
print(len(log.list()))
state.close()
with State.in_folder(folder) as again:
    print(len(NightLog(again).list()), kept(again))
"""


def test_a_state_that_fills_a_real_disk_keeps_what_it_has_and_writes_again_later(small_disk: Path) -> None:
    said = said_of(FILLS_THE_STATE, small_disk, ballast_mib=16)
    refusal, counts, later, reopened = said
    assert "is full; delete something there" in refusal
    written, found, nights = counts.split(maxsplit=2)
    assert 0 < int(written) < 1000
    assert (found, nights, later) == (written, "[]", "1")
    assert reopened == f"1 {written}"
