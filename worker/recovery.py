"""What is left of nights whose worker died.

Owns the search for nights whose message was lost, and the end of what belongs to ended ones. Celery's
filesystem transport deletes a message when it is taken, so a killed worker takes it along; Redis gives it
back only after its visibility timeout. The records know better.
"""

import shutil

from config.settings import Settings
from memory.night import NightLog
from memory.state import State
from worker.lock import is_held


def orphaned_nights(settings: Settings) -> list[str]:
    """Return ids of nights that have not ended and that nobody on this machine is working on, oldest first.

    A night that still waits in the queue is among them, and so is one that another machine works on; queued
    twice, it runs once. One that has no snapshot yet is the gateway's.
    """
    with State.open(settings) as state:
        return [
            night.id
            for night in reversed(NightLog(state).list())
            if not night.ended
            and (settings.data_dir / "snapshots" / night.id).is_dir()
            and not is_held(state, night.space)
        ]


def sweep(settings: Settings) -> None:
    """Delete checkpoints of nights that a gateway has ended: no worker came back for them."""
    with State.open(settings) as state:
        log = NightLog(state)
        for folder in (settings.data_dir / "nights").glob("*/"):
            night = log.get(folder.name)
            if night is None or night.ended:
                shutil.rmtree(folder, ignore_errors=True)
