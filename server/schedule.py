"""Nights by the clock.

Owns when one is due: when no record answers for the last time that cron names. Records and clock decide, no
timer does, so nothing that stops, restarts or changes its clock loses a night or repeats one: of those missed
meanwhile, the last is made up for. What lies before the schedule was first followed was not missed; when
that was stands in a file. Knows nothing of how nights start.
"""

import json
import logging
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from config.cron import Cron
from memory.atomic import write_json
from memory.night import NightRecord

logger = logging.getLogger(__name__)


class Schedule:
    """Says when a night is due.

    Args:
        cron: When nights start.
        path: File of the moment from which on this schedule is followed; another cron begins anew.
    """

    def __init__(self, cron: Cron, path: Path) -> None:
        self._cron = cron
        self._path = path
        self._followed_since: datetime | None = None

    def due(self, nights: Iterable[NightRecord], moment: datetime) -> datetime | None:
        """Return the scheduled time that a night should start for at `moment`; None: none is due.

        Args:
            nights: All nights of the space.

        Raises:
            OSError: the file cannot be written.
        """
        last = self._cron.last(moment)
        if last is None or last <= self._since(moment):
            return None
        return None if any(night.scheduled_for == last for night in nights) else last

    def _since(self, moment: datetime) -> datetime:
        since = self._followed_since or self._read()
        if since is None or since > moment:  # the clock was ahead: no night until then otherwise
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {"cron": self._cron.text, "since": moment.isoformat()})
            since = moment
        self._followed_since = since
        return since

    def _read(self) -> datetime | None:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            since = datetime.fromisoformat(known["since"]) if known["cron"] == self._cron.text else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("%s cannot be read, the schedule begins anew: %s", self._path, error)
            return None
        return since if since is not None and since.tzinfo is not None else None
