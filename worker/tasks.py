"""What the queue can ask of a worker.

Owns the tasks, each of which calls one function. Models, numpy and HTTP are imported inside them: they
run in a child process that ends with its task, so that an idle worker stays small.
"""

import logging
from typing import Any

from celery import shared_task

from config.queue import NIGHT_TASK
from config.settings import Settings

logger = logging.getLogger(__name__)


@shared_task(name=NIGHT_TASK)  # type: ignore[untyped-decorator]
def consolidate(night_id: str) -> None:
    """Run one night."""
    import asyncio

    from memory.night import UnknownNightError
    from worker.night import run_night

    try:
        record = asyncio.run(run_night(night_id, Settings()))
    except UnknownNightError as error:
        logger.error("%s; is LATENTEVOLVE_DATA_DIR the gateway's?", error)
        return
    logger.info("night %s ended as %s: %s", record.id, record.state, record.error or record.message)


@shared_task(name="latentevolve.recover", bind=True)  # type: ignore[untyped-decorator]
def recover(task: Any) -> None:
    """Queue nights again whose worker died, and delete what others have left."""
    from worker.recovery import orphaned_nights, sweep

    sweep(Settings())
    for night_id in orphaned_nights(Settings()):
        logger.warning("night %s has not ended and nobody works on it: queued again", night_id)
        task.app.send_task(NIGHT_TASK, [night_id])
