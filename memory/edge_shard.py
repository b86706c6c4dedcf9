"""One shard of Qdrant Edge on disk, replaced by an indexed copy of itself while it is used.

Owns the shard's folder, the lock that keeps other processes out of it, the flushes, and when and how the
graph of the keys is built. Knows nothing of what is stored.

Edge builds a graph only when it is asked to, in one call that holds the interpreter lock from beginning to
end. So the graph is built elsewhere: what is stored is copied, a child process indexes the copy
(`memory/edge_index.py`), what was written meanwhile is written to the copy too, and the copy takes over.
Reads go on all the time; writes wait while files are copied. `current.json` names the folder that holds the
truth, and is replaced at once: whoever dies on the way leaves a folder that the next start removes, once it
has opened the truth; only a folder named `shard`, which somebody may have put back, is left alone.
"""

import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import qdrant_edge as edge

from memory.atomic import sweep, sync_tree, write_json
from memory.episode import StoreUnavailableError
from memory.free_space import FreeSpace, NoRoomError

logger = logging.getLogger(__name__)

T = TypeVar("T")

FLUSH_EVERY = 512
"""Points between flushes. A flush empties the write-ahead log, so this bounds the replay at the next
open to a fraction of a second; it costs 20–100 ms, during which Edge holds the interpreter lock."""

COPIED_AT_ONCE = 64
"""Points that are in memory while they are copied into new files."""

POINTER = "current.json"

DELETED = "deleted"
"""Name of the file that is there while something was deleted that the shard's files may still hold."""

FIRST = "shard"
"""Name of a shard that was never replaced."""


@dataclass(eq=False)
class _Open:
    """A loaded shard, and how many calls are inside it."""

    shard: Any
    folder: Path
    calls: int = 0


EMPTY = 96 * 2**20
"""Room for a new shard: Edge maps and fills some 70 MiB for it, and where there is less the process ends by a
signal."""


class Layout(Protocol):
    """What a shard holds, for whom it is only files."""

    def create(self, path: Path) -> None:
        """Make an empty shard in the folder `path`, which is not there yet, and close it."""
        ...

    def fits(self, path: Path) -> bool:
        """Return whether the shard in `path` is laid out like this, and not as earlier builds did."""
        ...

    def laid_out(self, record: Any) -> Any:
        """Return the point for such a shard that a record, all of it, of this or an earlier build tells."""
        ...


class EdgeFolder:
    """The shard in the directory `path`. Thread-safe.

    Args:
        path: Made when it is not there.
        layout: Of the shard. One of an earlier build is written anew when it is opened.
        room: Asked before the shard is opened, which writes, and before a graph is built. Without room the
            shard stays shut until there is some.
        index_from: Points without a graph from which one is built, if they are a tenth of all; below, Edge
            scans them.

    Raises, from every method:
        StoreUnavailableError: closed, locked by another process, or files that Edge cannot read.
    """

    def __init__(self, path: Path, layout: Layout, *, room: FreeSpace, index_from: int) -> None:
        self.path = path
        self._layout, self._room = layout, room
        self._deleted = path / DELETED
        self.writing = threading.RLock()
        """Held by whoever writes; hold it to read and write as one."""
        self._index_from = index_from
        self._idle = threading.Condition()
        self._unflushed = 0
        self._copied: list[Any] | None = None
        """Operations since the copy that is being indexed was taken; None: there is none."""
        self._indexer: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._closing = False
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
        except OSError as exc:
            raise StoreUnavailableError(f"cannot use the episode folder {path}: {exc}") from exc
        self._current: _Open | None = None
        try:
            self._current = self._open()
        except NoRoomError as exc:
            logger.error("memory stays shut until there is room: %s", exc)
        except BaseException:
            self._lock.close()
            raise
        with self.writing:
            self._keep_up()

    def call(self, action: Callable[[Any], T]) -> T:
        """Return what `action` makes of the shard, which stays open for as long."""
        with self._idle:
            if self._current is None:
                self._current = self._reopened()
            current = self._current
            current.calls += 1
        try:
            return self._translated(lambda: action(current.shard))
        finally:
            with self._idle:
                current.calls -= 1
                self._idle.notify_all()

    def update(self, operation: Any, points: int) -> None:
        """Apply an operation on so many points; when it returns, it survives the death of the process."""
        with self.writing:
            self.call(lambda shard: shard.update(operation))
            if self._copied is not None:
                self._copied.append(operation)
            self._unflushed += points
            if self._unflushed >= FLUSH_EVERY:
                self._keep_up()

    def indexed(self) -> int:
        """Return how many points the graph reaches; the others are scanned."""
        return self.call(_indexed)

    def settle(self, timeout_s: float | None = None) -> bool:
        """Wait until no graph is being built; False when that took longer."""
        indexer = self._indexer
        if indexer is not None:
            indexer.join(timeout_s)
        return indexer is None or not indexer.is_alive()

    def close(self) -> None:
        """Flush and release files; a graph that is being built is given up. May be called again."""
        with self.writing:
            self._closing = True
            if self._child is not None:
                self._child.kill()
        self.settle()
        with self.writing, self._idle:
            current, self._current = self._current, None
            if current is not None:
                self._idle.wait_for(lambda: not current.calls)  # Edge closes nothing that is being read
        try:
            if current is not None:
                self._translated(current.shard.close)
        finally:
            self._lock.close()

    def note_deletion(self) -> None:
        """Remember, also after a restart, that something is deleted that files may still hold."""
        with self.writing:
            self._translated(self._deleted.touch)

    def compact(self) -> bool:
        """Copy what there is into new files when something was deleted, and return whether that was so.

        Deleted points stay in segments and write-ahead log for as long as Edge likes. Writes wait meanwhile,
        and the graph is built anew.

        Raises:
            NoRoomError: the disk has no room for both.
        """
        while True:
            self.settle()  # outside: whoever builds a graph takes the lock, and copies what was deleted
            with self.writing:
                if not self.settle(0):
                    continue
                if self._closing or not self._deleted.exists():
                    return False
                self.call(_count)  # opens what was shut when the disk was full, or says that it still is
                self._compact()
                self._deleted.unlink()
                self._keep_up()
                return True

    def _compact(self) -> None:
        assert self._current is not None
        old = self._current
        self._room.demand("a copy of memory without what was deleted", _bytes(old.folder))
        copy = self.path / f"{FIRST}-{uuid.uuid4().hex}"
        try:
            self._copy_points(old.shard, copy)
            self._replace_by(copy)
        finally:
            if self._current is None or self._current.folder != copy:
                shutil.rmtree(copy, ignore_errors=True)

    def _copy_points(self, source: Any, copy: Path) -> None:
        """Write what a shard holds, of whichever build, into a new one in the folder `copy`."""
        self._translated(lambda: self._layout.create(copy))
        shard = self._translated(lambda: edge.EdgeShard.load(str(copy)))
        try:
            self._translated(lambda: self._copy_pages(source, shard))
        finally:
            self._translated(shard.close)

    def _copy_pages(self, source: Any, target: Any) -> None:
        offset: Any = None
        while True:
            request = edge.ScrollRequest(
                offset=offset, limit=COPIED_AT_ONCE, with_vector=True, with_payload=True
            )
            records, offset = source.scroll(request)
            if records:
                points = [self._layout.laid_out(record) for record in records]
                target.update(edge.UpdateOperation.upsert_points(points))
            if offset is None:
                break
        target.flush()

    def _reopened(self) -> _Open:
        """Open what was not when the disk was full."""
        if self._closing:
            raise StoreUnavailableError(f"the episode store {self.path} is closed")
        try:
            return self._open()
        except NoRoomError as exc:
            raise StoreUnavailableError(f"the episode store {self.path} is shut: {exc}") from exc

    def _open(self) -> _Open:
        self._room.demand("an episode store", reserve=True)
        home = self._home()
        opened = _Open(self._translated(lambda: edge.EdgeShard.load(str(home))), home)
        if not self._translated(lambda: self._layout.fits(home)):
            opened = self._laid_out_anew(opened)
        self._clean(opened.folder)  # only now: what the truth is was not certain before
        return opened

    def _laid_out_anew(self, old: _Open) -> _Open:
        try:
            self._room.demand("the episodes of an earlier build, written anew", 2 * _bytes(old.folder))
        except NoRoomError:
            old.shard.close()
            raise
        logger.warning("episodes of an earlier build in %s are written anew; this happens once", old.folder)
        new = self.path / f"{FIRST}-{uuid.uuid4().hex}"
        try:
            self._copy_points(old.shard, new)
        except Exception:
            shutil.rmtree(new, ignore_errors=True)
            raise
        finally:
            self._translated(old.shard.close)
        shard = self._translated(lambda: edge.EdgeShard.load(str(new)))
        sync_tree(new)
        self._translated(lambda: write_json(self.path / POINTER, {"shard": new.name}))
        shutil.rmtree(old.folder, ignore_errors=True)
        return _Open(shard, new)

    def _home(self) -> Path:
        """Return the folder that holds the truth; made when there is none."""
        pointer, home = self.path / POINTER, self.path / FIRST
        if pointer.exists():
            home = self.path / self._translated(lambda: str(json.loads(pointer.read_text())["shard"]))
            if not home.is_dir():
                raise StoreUnavailableError(
                    f"{pointer} says that the episodes are in {home}, which is not there; put it back, or "
                    f"move {pointer.name} away to go on with what else is in the folder"
                )
            return home
        if home.exists():
            return home
        copies = sorted(self.path.glob(f"{FIRST}-*"))
        if len(copies) > 1:
            raise StoreUnavailableError(
                f"{pointer} is gone, and the episodes may be in any of {', '.join(map(str, copies))}; "
                "move all but one of them away"
            )
        if copies:
            logger.warning("%s is gone; the episodes in %s are used", pointer, copies[0])
            self._translated(lambda: write_json(pointer, {"shard": copies[0].name}))
            return copies[0]
        self._room.demand("a new episode store", page=EMPTY, reserve=True)
        # Complete in a folder of its own, then renamed into place.
        new = self.path / f"new-{uuid.uuid4().hex}"
        self._translated(lambda: self._layout.create(new))
        os.rename(new, home)
        return home

    def _clean(self, home: Path) -> None:
        """Delete what writers that died left beside the truth."""
        sweep(self.path)
        for folder in self.path.iterdir():
            if not folder.is_dir() or folder == home:
                continue
            if folder.name.startswith(("new-", f"{FIRST}-")):
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.name == FIRST:
                logger.warning("%s is not used, for the episodes are in %s; it is left alone", folder, home)

    def _keep_up(self) -> None:
        """Flush and index what is due. What is stored stays stored when that fails."""
        try:
            if self._unflushed:
                self._flush()
            self._index_if_due()
        except Exception as exc:
            logger.error("what is stored is safe, but was not flushed or indexed: %s", exc)

    def _flush(self) -> None:
        self.call(lambda shard: shard.flush())
        self._unflushed = 0

    def _index_if_due(self) -> None:
        if self.settle(0) and self._index_is_due():
            self._indexer = threading.Thread(target=self._index, name="edge-index", daemon=True)
            self._indexer.start()

    def _index_is_due(self) -> bool:
        if self._closing or self._current is None:
            return False
        home = self._current.folder
        points = self.call(lambda shard: int(shard.info().points_count))
        unindexed = points - self.indexed()
        # A tenth: each graph is of all there is, and building by number alone would cost the square of it.
        if unindexed < max(self._index_from, points // 10):
            return False
        # The copy, and what the child writes anew before it removes what that replaces.
        try:
            self._room.demand("the graph of the episodes", 2 * _bytes(home))
        except NoRoomError as exc:
            logger.warning("memory is scanned: %s", exc)
            return False
        logger.info("building the graph of %d episodes beside the server", unindexed)
        return True

    def _index(self) -> None:
        """Build graphs until none is due: while one is built, enough for the next may come."""
        try:
            while self._index_once() and self._index_is_due():
                pass
        except StoreUnavailableError as exc:
            logger.error("the graph of the episodes is not looked after: %s", exc)

    def _index_once(self) -> bool:
        """Return whether the graph reaches more than before."""
        copy, before = self.path / f"shard-{uuid.uuid4().hex}", self.indexed()
        try:
            self._copy_to(copy)
            if self._indexed_by_child(copy):
                self._replace_by(copy)
        except NoRoomError as exc:
            logger.warning("memory is scanned: %s", exc)
        except Exception:  # recall is only slower without a graph
            logger.exception("the graph of the episodes in %s could not be built", self.path)
        finally:
            with self.writing:
                self._copied = None
                self._child = None
                if self._current is None or self._current.folder != copy:
                    shutil.rmtree(copy, ignore_errors=True)
        return self.indexed() > before

    def _copy_to(self, copy: Path) -> None:
        with self.writing:
            self._flush()
            assert self._current is not None
            # With its write-ahead log, though that is flushed: operations are numbered on from it, and Edge
            # leaves out one whose number a point has seen already.
            shutil.copytree(self._current.folder, copy)
            self._copied = []

    def _indexed_by_child(self, copy: Path) -> bool:
        with self.writing:
            if self._closing:
                return False
            script = Path(__file__).with_name("edge_index.py")
            self._child = child = subprocess.Popen(
                [sys.executable, "-I", str(script), str(copy)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        _, complaint = child.communicate()
        if child.returncode and not self._closing:
            last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            logger.error("the graph could not be built: exit code %d: %s", child.returncode, last)
        return child.returncode == 0

    def _replace_by(self, copy: Path) -> None:
        with self.writing:
            if self._closing:
                return
            self._room.demand("what was stored while the graph was built", reserve=True)
            shard = self._translated(lambda: edge.EdgeShard.load(str(copy)))
            for operation in self._copied or ():
                shard.update(operation)
            shard.flush()
            expected, found = self.call(_count), _count(shard)
            if found != expected:
                shard.close()
                raise StoreUnavailableError(f"the indexed copy has {found} episodes instead of {expected}")
            sync_tree(copy)  # before the old files go: a power failure takes recent episodes, not all
            write_json(self.path / POINTER, {"shard": copy.name})
            with self._idle:
                old, self._current = self._current, _Open(shard, copy)
                assert old is not None
                self._idle.wait_for(lambda: not old.calls)
            self._translated(old.shard.close)
        shutil.rmtree(old.folder, ignore_errors=True)
        logger.info("the graph reaches %d episodes", self.indexed())

    def _translated(self, action: Callable[[], T]) -> T:
        """Run `action`; what Edge raises, a Rust panic included, becomes StoreUnavailableError."""
        try:
            return action()
        except Exception as exc:
            raise StoreUnavailableError(f"the episode store {self.path} failed: {exc}") from exc
        except BaseException as exc:
            if type(exc).__name__ != "PanicException":  # pyo3's, which is no Exception and cannot be imported
                raise
            raise StoreUnavailableError(f"the episode store {self.path} failed: {exc}") from exc


def _lock(path: Path) -> IO[bytes]:
    """Take the folder's lock; the kernel releases it when the process ends, however it ends."""
    file = (path / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        file.close()
        raise StoreUnavailableError(
            f"the episode folder {path} is in use by another process; Qdrant Edge allows only one"
        ) from exc
    return file


def _indexed(shard: Any) -> int:
    # Both named vectors of an indexed point count as indexed.
    return int(shard.info().indexed_vectors_count) // 2


def _bytes(folder: Path) -> int:
    """Return how long the files of a folder are: copying fills the holes of sparse ones."""
    return sum(file.stat().st_size for file in folder.rglob("*"))


def _count(shard: Any) -> int:
    return int(shard.count(edge.CountRequest(exact=True)))
