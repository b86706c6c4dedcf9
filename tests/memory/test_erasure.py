"""What is deleted is gone from the files too, and what is not stays."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from memory.edge_store import EdgeStore
from memory.episode import Episode, StoreUnavailableError
from memory.free_space import FreeSpace, NoRoomError
from tests.memory.conftest import HIDDEN, LENGTH, SPACE, recall_from

Make = Callable[..., Episode]


def opened(folder: Path, index_from: int = 10_000, room: FreeSpace | None = None) -> EdgeStore:
    disk = room or FreeSpace(folder, 0)
    return EdgeStore(folder, space=SPACE, length=LENGTH, hidden_size=HIDDEN, index_from=index_from, room=disk)


def holds(folder: Path, text: str) -> bool:
    return any(text.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("index_from", [10_000, 20])
def test_a_deleted_text_is_in_no_file_once_these_were_compacted_and_the_others_are(
    tmp_path: Path, make_episode: Make, index_from: int
) -> None:
    gone, kept = make_episode(prompt_text="forget-this"), make_episode(answer_text="keep-this")
    others = [make_episode() for _ in range(40)]
    with closing(opened(tmp_path, index_from)) as store:
        store.add([gone, kept, *others])
        before = {one.id: one for one in store.scroll()}
        assert not store.compact()  # nothing was deleted
        assert holds(tmp_path, "forget-this")
        store.delete([gone.id])
        assert store.compact()
        assert not store.compact()
        assert not holds(tmp_path, "forget-this")
        assert holds(tmp_path, "keep-this")
        after = {one.id: one for one in store.scroll()}
        assert after.keys() == before.keys() - {gone.id}
        for name, one in after.items():
            assert one.summary() == before[name].summary()
            assert one.key.tobytes() == before[name].key.tobytes()
            assert one.latent.tobytes() == before[name].latent.tobytes()
        found = recall_from(store, kept.key, tenant="default", k=1, floor=0.9)
        assert [one.episode.id for one in found] == [kept.id]
        store.add([make_episode(id=gone.id, prompt_text="said again")])
        store.settle()
    with closing(opened(tmp_path, index_from)) as store:
        assert store.count() == 42
        assert not holds(tmp_path, "forget-this")


def test_what_was_deleted_before_a_restart_is_still_due(tmp_path: Path, make_episode: Make) -> None:
    gone = make_episode(prompt_text="forget-this")
    with closing(opened(tmp_path)) as store:
        store.add([gone, make_episode()])
        store.delete([gone.id])
    with closing(opened(tmp_path)) as store:
        assert store.compact()
        assert not holds(tmp_path, "forget-this")
        assert store.count() == 1


def test_without_room_nothing_changes_and_it_stays_due(tmp_path: Path, make_episode: Make) -> None:
    class Disk(FreeSpace):
        full = False

        def free(self) -> int:
            return 0 if self.full else super().free()

    disk = Disk(tmp_path, 1)
    gone = make_episode()
    with closing(opened(tmp_path, room=disk)) as store:
        store.add([gone, make_episode()])
        store.delete([gone.id])
        disk.full = True
        with pytest.raises(NoRoomError, match="what was deleted"):
            store.compact()
        assert store.count() == 1
    with closing(opened(tmp_path, room=disk)) as store:  # shut, until there is room
        with pytest.raises(StoreUnavailableError, match="shut"):
            store.compact()
        disk.full = False
        assert store.compact()
        assert store.count() == 1
