"""Celery's transport over a folder, made to bear files that are cut short.

Owns how messages become files and how files are taken. Kombu's own transport writes them where readers look,
so that a reader may meet half a message, and what it cannot read ends the worker; the tables in its
`*.exchange` files are not written at once either, and one that cannot be read stops every sender.
"""

import json
import logging
import os
import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, filesystem, virtual

logger = logging.getLogger(__name__)

URL = "nights-folder://localhost"


class Channel(filesystem.Channel):  # type: ignore[misc]
    """Kombu's, but messages appear at once, and what cannot be read is thrown away."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        # Named as kombu does, so that it counts and empties the folder as ever.
        name = f"{uuid.uuid4()}.{queue}.msg"
        hidden = Path(self.data_folder_out, f".{name}")
        try:
            hidden.write_text(json.dumps(payload), encoding="utf-8")
            os.replace(hidden, Path(self.data_folder_out, name))
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        waiting = [path for path in Path(self.data_folder_in).iterdir() if _is_of(queue, path.name)]
        for path in sorted(waiting, key=_written_at):
            taken = Path(self.processed_folder, path.name)
            try:
                os.rename(path, taken)  # of several takers one succeeds
            except OSError:
                continue
            try:
                payload = json.loads(taken.read_bytes())
                self.Message(payload, channel=self)
            except Exception as error:  # whatever kombu raises on the way through it
                logger.warning("message %s cannot be read and is thrown away: %s", path.name, error)
            else:
                return payload
            finally:
                taken.unlink(missing_ok=True)
        raise Empty

    def get_table(self, exchange: str) -> Any:
        self._drop_what_cannot_be_read(exchange)
        return super().get_table(exchange)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        self._drop_what_cannot_be_read(exchange)
        super()._queue_bind(exchange, routing_key, pattern, queue)

    def _delete(self, queue: str, exchange: str, *arguments: Any, **named: Any) -> None:
        self._drop_what_cannot_be_read(exchange)
        super()._delete(queue, exchange, *arguments, **named)

    def _drop_what_cannot_be_read(self, exchange: str) -> None:
        """Delete a broken table; whoever needs its bindings makes them again when it starts."""
        file = self._exchange_file(exchange)
        try:
            for entry in json.loads(file.read_bytes()):
                filesystem.exchange_queue_t(*entry)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError) as error:
            logger.warning("%s cannot be read and is made again: %s", file, error)
            file.unlink(missing_ok=True)


def sweep(root: Path, *, age_s: float = 3600.0) -> int:
    """Delete what senders and takers that died left in the queue's folder, and return how many files.

    Args:
        root: Holds `messages` and `processed`.
        age_s: A living process leaves a file where it is for milliseconds; what has been there longer goes.
    """
    swept = 0
    for path in (*(root / "messages").glob(".*.msg"), *(root / "processed").glob("*.msg")):
        try:
            # When it was named so: a taken message is renamed, and may have been written long before.
            if time.time() - path.stat().st_ctime >= age_s:
                path.unlink()
                swept += 1
        except OSError:  # finished meanwhile
            continue
    return swept


def _is_of(queue: str, name: str) -> bool:
    return name.partition(".")[2] == f"{queue}.msg"


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class Transport(filesystem.Transport):  # type: ignore[misc]
    """The transport of these channels."""

    Channel = Channel

    def __init__(self, client: Any, **named: Any) -> None:
        super().__init__(client, **named)
        # Kombu's would be shared by all connections of the process: none would make a lost table again.
        self.state = virtual.BrokerState()


TRANSPORT_ALIASES[URL.partition(":")[0]] = f"{__name__}:Transport"
