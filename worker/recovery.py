"""What is left of nights whose worker died.

Owns the search for nights whose message was lost, and the end of what belongs to ended ones. Celery's
filesystem transport deletes a message when it is taken, so a killed worker takes it along; Redis gives it
back only after its visibility timeout. The records know better.
"""

import shutil

from config.settings import Settings
from memory.night import NightLog
from memory.state import State
from worker.lock import is_locked, lock_folder


def orphaned_nights(settings: Settings) -> list[str]:
    """Return ids of nights that have not ended and that nobody is working on, oldest first.

    A night that still waits in the queue is among them; queued twice, it runs once. One that has no snapshot
    yet is the gateway's.
    """
    with State.open(settings) as state:
        nights = reversed(NightLog(state).list())
    return [
        night.id
        for night in nights
        if not night.ended
        and (settings.data_dir / "snapshots" / night.id).is_dir()
        and not is_locked(lock_folder(settings), night.space)
    ]


def sweep(settings: Settings) -> None:
    """Delete checkpoints of nights that a gateway has ended: no worker came back for them."""
    with State.open(settings) as state:
        log = NightLog(state)
        for folder in (settings.data_dir / "nights").glob("*/"):
            night = log.get(folder.name)
            if night is None or night.ended:
                shutil.rmtree(folder, ignore_errors=True)
