"""What builds before the state in SQL kept in files, taken over into it.

Owns the layout of those files: `nights/<id>.json` and `nights/<id>/attempts.json`,
`priors/<space>/{active,last}.json`, `schedule/<space>.json`, `traces/<id>.{json,safetensors}`. What the state
knows already stays as it is there. A file is deleted once the state has what it says, so that a start which
is cut short goes on with the next one. What cannot be read stays, and is told.
"""

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from sqlalchemy import Connection, Table, insert, select

from memory.atomic import sweep
from memory.database import Database
from memory.episode import LatentMemoryError
from memory.night import NightRecord, State, Trigger
from memory.schema import labels, nights, schedules, traces

logger = logging.getLogger(__name__)

_AT_ONCE = 100
"""Files that are taken in one transaction; others wait for its end."""

Row = dict[str, Any]


def take_over(state: Database, folder: Path, keep_traces: int) -> None:
    """Take over what there is in a data folder, and delete those files.

    Args:
        state: Where it goes.
        folder: The data folder.
        keep_traces: Most traces that are taken, the newest.

    Raises:
        StateUnavailableError, NoRoomError: the state cannot be written; the files that are left stay.
    """
    taken = {
        "nights": _take(state, nights, "id", _files(folder / "nights"), _night),
        "labels of priors": _take(state, labels, "space", _label_folders(folder), _label),
        "schedules": _take(state, schedules, "space", _files(folder / "schedule"), _schedule),
        "traces": _take_traces(state, folder / "traces", keep_traces),
    }
    sweep(folder / "nights")
    for left in (folder / "nights" / "lock", *(folder / "priors").glob("[!.]*/lock")):
        left.unlink(missing_ok=True)
    for left in (folder / "locks").glob("*.lock"):
        left.unlink(missing_ok=True)
    for emptied in (folder / "locks", folder / "schedule", folder / "traces"):
        sweep(emptied)
        with suppress(OSError):  # not there, or not empty
            emptied.rmdir()
    if any(taken.values()):
        counts = ", ".join(f"{count} {what}" for what, count in taken.items() if count)
        logger.info("taken over from files of an earlier build: %s", counts)


def _take(
    state: Database, table: Table, key: str, paths: list[Path], read: Callable[[Path], tuple[Row, list[Path]]]
) -> int:
    """Insert a row per path unless the table has it, delete the files it was read from; return how many."""
    count = 0
    for start in range(0, len(paths), _AT_ONCE):
        rows: list[Row] = []
        files: list[Path] = []
        for path in paths[start : start + _AT_ONCE]:
            try:
                row, of_row = read(path)
            except FileNotFoundError:
                continue  # another process has taken it
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                logger.warning("%s is left behind, it cannot be read: %s", path, error)
                continue
            rows.append(row)
            files += of_row
        if rows:
            with state.write() as connection:
                count += _insert(connection, table, key, rows)
        for file in files:
            file.unlink(missing_ok=True)
    return count


def _insert(connection: Connection, table: Table, key: str, rows: list[Row]) -> int:
    there = select(table.c[key]).where(table.c[key].in_([row[key] for row in rows]))
    known = set(connection.scalars(there))
    new = [row for row in rows if row[key] not in known]
    for row in new:
        connection.execute(insert(table).values(row))
    return len(new)


def _night(path: Path) -> tuple[Row, list[Path]]:
    values = _object(path)
    known = {field.name: values[field.name] for field in fields(NightRecord) if field.name in values}
    for name in ("created_at", "updated_at", "started_at", "finished_at", "scheduled_for"):
        if known.get(name) is not None:
            known[name] = _moment(known[name])
    if values.get("gate"):
        known["evidence"] = {"gate": values["gate"]}  # what decided in earlier builds
    record = NightRecord(**known)
    if record.id != path.stem:
        raise ValueError(f"it is the record of night {record.id!r}")
    if record.state not in get_args(State) or record.trigger not in get_args(Trigger):
        raise ValueError(f"{record.state!r} or {record.trigger!r} is unknown")
    if not (record.created_at and record.updated_at):
        raise ValueError("it has no times")
    notes, attempts = path.with_suffix("") / "attempts.json", {"attempts": 0, "reached": 0}
    with suppress(OSError, ValueError, TypeError, KeyError):  # else they are counted anew
        read = json.loads(notes.read_text(encoding="utf-8"))
        attempts = {name: int(read[name]) for name in attempts}
    return {**vars(record), **attempts}, [path, notes]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.json"))


def _label_folders(folder: Path) -> list[Path]:
    found = (folder / "priors").glob("[!.]*/*.json")
    return sorted({path.parent for path in found if path.name in ("active.json", "last.json")})


def _label(folder: Path) -> tuple[Row, list[Path]]:
    pointer, last = folder / "active.json", folder / "last.json"
    active = _object(pointer) if pointer.exists() else {}
    number = str(_object(last)["version"]).removeprefix("v") if last.exists() else "0"
    version, at = active.get("version"), active.get("activated_at")
    if version is not None and not isinstance(version, str):
        raise ValueError("the pointer names no version")
    row = {
        "space": folder.name,
        "active": version,
        "pinned": bool(active.get("pinned", False)),
        "activated_at": None if at is None else _moment(at),
        "last_number": int(number),
    }
    return row, [pointer, last]


def _schedule(path: Path) -> tuple[Row, list[Path]]:
    values = _object(path)
    row = {"space": path.stem, "cron": str(values["cron"]), "since": _moment(values["since"])}
    return row, [path]


def _take_traces(state: Database, folder: Path, keep: int) -> int:
    found = sorted(_dated(folder), reverse=True)
    newest, older = found[:keep], found[keep:]
    for _, path in older:
        for file in (path, path.with_suffix(".safetensors")):
            file.unlink(missing_ok=True)
    try:
        if newest:
            state.room.demand("traces of an earlier build")
        return _take(state, traces, "id", [path for _, path in reversed(newest)], _trace)
    except LatentMemoryError as error:
        logger.warning("traces in %s are left behind until the next start: %s", folder, error)
        return 0


def _dated(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.glob("[!.]*.json"):
        with suppress(FileNotFoundError):
            yield path.stat().st_mtime_ns, path


def _trace(path: Path) -> tuple[Row, list[Path]]:
    content, tensors = _object(path), path.with_suffix(".safetensors")
    trace_id = str(uuid.UUID(path.stem))
    latent = tensors.read_bytes() if content["latent"] is not None else None
    return {"id": trace_id, "content": content, "latent": latent}, [path, tensors]


def _object(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    return values


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment
