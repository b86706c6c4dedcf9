"""Nights whose message was lost with their worker.

Owns the search for them. Celery's filesystem transport deletes a message when it is taken, so a killed
worker takes it along; Redis gives it back only after its visibility timeout. The records know better.
"""

from config.settings import Settings
from memory.night import NightLog
from worker.lock import is_locked, lock_folder


def orphaned_nights(settings: Settings) -> list[str]:
    """Return ids of nights that have not ended and that nobody is working on, oldest first.

    A night that still waits in the queue is among them; queued twice, it runs once. One that has no snapshot
    yet is the gateway's.
    """
    nights = reversed(NightLog(settings.data_dir / "nights").list())
    return [
        night.id
        for night in nights
        if not night.ended
        and (settings.data_dir / "snapshots" / night.id).is_dir()
        and not is_locked(lock_folder(settings), night.space)
    ]
