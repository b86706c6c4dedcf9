"""Nights by the clock.

Owns when one is due: when no record answers for the last time that cron names. Records and clock decide, no
timer does, so nothing that stops, restarts or changes its clock loses a night or repeats one: of those missed
meanwhile, the last is made up for. What lies before the schedule was first followed was not missed. Knows
nothing of how nights start.
"""

from collections.abc import Iterable
from datetime import datetime

from config.cron import Cron
from memory.night import NightRecord
from memory.state import State


class Schedule:
    """Says when a night is due.

    Args:
        cron: When nights start.
        space: Whose nights they are.
        state: Knows from which moment on this schedule is followed; another cron begins anew.
    """

    def __init__(self, cron: Cron, space: str, state: State) -> None:
        self._cron, self._space, self._state = cron, space, state
        self._followed_since: datetime | None = None

    def due(self, nights: Iterable[NightRecord], moment: datetime) -> datetime | None:
        """Return the scheduled time that a night should start for at `moment`; None: none is due.

        Args:
            nights: All nights of the space.

        Raises:
            StateUnavailableError, NoRoomError: the state cannot be written.
        """
        last = self._cron.last(moment)
        if last is None or last <= self._since(moment):
            return None
        return None if any(night.scheduled_for == last for night in nights) else last

    def _since(self, moment: datetime) -> datetime:
        since = self._followed_since
        if since is None or since > moment:  # the clock was ahead: no night until then otherwise
            since = self._state.follow(self._space, self._cron.text, moment)
        self._followed_since = since
        return since
