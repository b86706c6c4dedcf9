"""What the queue can ask of a worker.

Owns the tasks, each of which runs one process (`worker/__main__.py`), and what becomes of a message whose
process did not get to its end.
"""

import logging

from celery import shared_task
from celery.exceptions import Reject

from config.queue import NIGHT_TASK
from worker.process import Runner, StoppedError

logger = logging.getLogger(__name__)

runner = Runner()


@shared_task(name=NIGHT_TASK)  # type: ignore[untyped-decorator]
def consolidate(night_id: str) -> None:
    """Run one night."""
    _run("night", night_id)


@shared_task(name="latentevolve.recover")  # type: ignore[untyped-decorator]
def recover() -> None:
    """Queue nights again whose worker died, and delete what others have left."""
    _run("recover")


def _run(*words: str) -> None:
    try:
        code = runner.run(*words)
    except StoppedError as stopped:
        logger.warning("%s did not end (%s): its message goes back to the queue", " ".join(words), stopped)
        raise Reject(str(stopped), requeue=True) from stopped
    if code:
        logger.error("%s ended with code %d", " ".join(words), code)
