"""Traces of past requests, on disk.

Owns their files (`<id>.json`, with the latent beside it in `<id>.safetensors`), their number, and the
background writing. Nothing here blocks the event loop. Knows nothing of what a trace says.
"""

import asyncio
import json
import logging
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from memory.atomic import sweep, write_file
from memory.episode import Episode
from memory.free_space import UNLIMITED, FreeSpace, NoRoomError
from server.steering.remember import Fate
from server.steering.trace import Trace

logger = logging.getLogger(__name__)

_BATCH = 64


class TraceLog:
    """Keeps the newest traces, those not yet written included.

    Args:
        root: Folder of the traces; made when it is not there.
        limit: Most traces on disk, and most that wait to be written.
        room: Asked before anything is written.
    """

    def __init__(self, root: Path, *, limit: int, room: FreeSpace = UNLIMITED) -> None:
        self._root, self._limit, self._room = root, limit, room
        self._roomy = True
        self._fresh: OrderedDict[str, Trace] = OrderedDict()
        self._changes: dict[str, dict[str, Any]] = {}
        self._on_disk: OrderedDict[str, None] = OrderedDict()  # oldest first
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self.lost = 0
        """Traces that could not be written."""

    async def start(self) -> None:
        """Find the traces that are there and begin to write."""
        for trace_id in await asyncio.to_thread(self._scan):
            self._on_disk[trace_id] = None
        self._task = asyncio.create_task(self._write_all(), name="traces")

    def record(self, trace: Trace) -> None:
        """Take a trace to be written and return at once."""
        self._fresh[trace.id] = trace
        while len(self._fresh) > self._limit:
            self._fresh.popitem(last=False)
            self.lost += 1
        self._wake()

    def settle(self, episode: Episode, fate: Fate) -> None:
        """Write into the episode's trace what became of it. A listener for `Remember`."""
        if episode.trace_id is None:
            return
        changes: dict[str, Any] = {"remembered": fate}
        if fate != "stored":
            changes["why_not_remembered"] = {
                "dropped": "too many episodes were waiting",
                "failed": "the store found fault with it",
                "refused": "the disk is nearly full",
                "deleted": "it was deleted",
            }[fate]
        self.change(episode.trace_id, changes)

    def change(self, trace_id: str, changes: dict[str, Any]) -> None:
        """Write fields into a trace that was recorded before."""
        self._changes[trace_id] = self._changes.get(trace_id, {}) | changes
        self._wake()

    async def get(self, trace_id: str, *, include_latent: bool = False) -> dict[str, Any] | None:
        """Return a trace as JSON, with the latent's values on request; None when there is none."""
        try:
            known = str(uuid.UUID(trace_id)) == trace_id
        except ValueError:
            known = False
        if not known:
            return None
        changes = self._changes.get(trace_id, {})  # taken first: they may be written while the file is read
        trace = self._fresh.get(trace_id)
        if trace is not None:
            found: dict[str, Any] | None = trace.to_json()
            values = trace.outcome.latent
        else:
            found, values = await asyncio.to_thread(self._read, trace_id, include_latent)
        if found is None:
            return None
        found.update(changes | self._changes.get(trace_id, {}))
        if include_latent and values is not None:
            found["latent"]["values"] = values.tolist()
        return found

    async def drain(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything is written; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, for at most so long, and stop."""
        if self._task is not None:
            await self.drain(timeout_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _wake(self) -> None:
        self._idle.clear()
        self._work.set()

    async def _write_all(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._fresh or self._changes:
                batch = [self._fresh[trace_id] for trace_id in list(self._fresh)[:_BATCH]]
                changes = {
                    trace_id: change
                    for trace_id, change in self._changes.items()
                    if trace_id not in self._fresh or any(trace.id == trace_id for trace in batch)
                }
                written: list[str] = []
                try:
                    await asyncio.to_thread(self._write, batch, changes, written)
                    self._roomy = True
                except NoRoomError as error:
                    if self._roomy:
                        logger.error("no traces until there is room: %s", error)
                    self._roomy = False
                except Exception:
                    logger.exception("%d traces could not be written", len(batch) - len(written))
                self.lost += len(batch) - len(written)
                await self._evict(written)
                for trace in batch:
                    self._fresh.pop(trace.id, None)
                for trace_id, change in changes.items():
                    if self._changes.get(trace_id) is change:
                        del self._changes[trace_id]
            self._idle.set()

    async def _evict(self, written: list[str]) -> None:
        """Delete as many of the oldest traces as have no place any more beside those that were written."""
        self._on_disk.update(dict.fromkeys(written))
        surplus = [self._on_disk.popitem(last=False)[0] for _ in range(len(self._on_disk) - self._limit)]
        try:
            await asyncio.to_thread(self._delete, surplus)
        except OSError as error:
            logger.error("traces that are too old cannot be deleted: %s", error)

    def _delete(self, trace_ids: list[str]) -> None:
        for trace_id in trace_ids:
            for suffix in (".json", ".safetensors"):
                (self._root / f"{trace_id}{suffix}").unlink(missing_ok=True)

    def _scan(self) -> list[str]:
        self._root.mkdir(parents=True, exist_ok=True)
        sweep(self._root)
        files = sorted(self._root.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return [path.stem for path in files]

    def _write(self, batch: list[Trace], changes: dict[str, dict[str, Any]], written: list[str]) -> None:
        """Write traces, and changes of others; `written` gets the ids of those that are there."""
        self._room.demand("traces")
        for trace in batch:
            if trace.outcome.latent is not None:
                latent = save({"latent": trace.outcome.latent.contiguous()})
                self._put(f"{trace.id}.safetensors", latent)
            self._write_json(trace.id, trace.to_json() | changes.get(trace.id, {}))
            written.append(trace.id)
        for trace_id, change in changes.items():
            if trace_id not in written:
                found, _ = self._read(trace_id, False)
                if found is not None:
                    self._write_json(trace_id, found | change)

    def _write_json(self, trace_id: str, content: Mapping[str, Any]) -> None:
        self._put(f"{trace_id}.json", json.dumps(content, separators=(",", ":")).encode())

    def _put(self, name: str, content: bytes) -> None:
        write_file(self._root / name, lambda new: new.write_bytes(content), durable=False)

    def _read(self, trace_id: str, include_latent: bool) -> tuple[dict[str, Any] | None, torch.Tensor | None]:
        path = self._root / f"{trace_id}.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            if not include_latent or found["latent"] is None:
                return found, None
            return found, load_file(path.with_suffix(".safetensors"))["latent"]
        except FileNotFoundError:
            return None, None  # never written, or deleted since
        except (ValueError, SafetensorError) as error:
            logger.error("trace %s cannot be read: %s", trace_id, error)
            return None, None
