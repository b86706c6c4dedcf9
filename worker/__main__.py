"""`python -m worker night ID` and `python -m worker recover`: a task of the worker, in its process.

Owns that it gives way to the gateway, how it logs, and what becomes of a night that is told to stop. Its end
gives its memory back, so that an idle worker stays small.
"""

import asyncio
import logging
import os
import signal
import sys

from config.queue import NIGHT_TASK, make_celery
from config.settings import Settings
from memory.night import UnknownNightError
from worker.night import run_night
from worker.process import STOPPED
from worker.recovery import orphaned_nights, sweep

logger = logging.getLogger("worker")

NICENESS = 10


def main() -> None:
    """Run one task."""
    os.nice(NICENESS)
    settings = Settings()
    form = "[%(asctime)s: %(levelname)s/night] %(message)s"
    logging.basicConfig(level=settings.log_level, format=form, stream=sys.stderr)
    match sys.argv[1:]:
        case ["night", night_id]:
            asyncio.run(_night(night_id, settings))
        case ["recover"]:
            _recover(settings)
        case _:
            raise SystemExit(__doc__)


async def _night(night_id: str, settings: Settings) -> None:
    night = asyncio.create_task(run_night(night_id, settings))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, night.cancel)
    try:
        record = await night
    except UnknownNightError as error:
        logger.error("%s; is LATENTEVOLVE_DATA_DIR the gateway's?", error)
    except asyncio.CancelledError:
        logger.info("night %s was stopped, and goes on later", night_id)
        os._exit(STOPPED)  # no thread that loads a model is waited for
    else:
        logger.info("night %s ended as %s: %s", record.id, record.state, record.error or record.message)


def _recover(settings: Settings) -> None:
    """Queue nights again whose worker died, and delete what others have left."""
    sweep(settings)
    queue = make_celery(settings)
    for night_id in orphaned_nights(settings):
        logger.warning("night %s has not ended and nobody works on it: queued again", night_id)
        queue.send_task(NIGHT_TASK, [night_id])


if __name__ == "__main__":
    main()
