"""The Celery app of the worker: `celery -A worker.app worker`.

Owns how nights are executed: one at a time, each in a process of its own, which ends when the worker
is told to. Knows nothing of what a night does.
"""

import logging
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_ready, worker_shutting_down

from config.queue import make_celery
from config.settings import Settings, unknown_variables
from worker.tasks import runner

logger = logging.getLogger(__name__)

RECOVERY_EXPIRES_S = 600
VISIBILITY_TIMEOUT_S = 6 * 3600
"""Redis gives a message that was not acknowledged for so long to another worker."""


def make_worker(settings: Settings) -> Celery:
    """Return the worker's app."""
    app = make_celery(settings)
    app.conf.update(
        imports=["worker.tasks"],
        # A thread that waits for a process. Celery's own processes share a lock, and one that is killed while
        # it holds that, as one with threads may be when the worker stops, leaves the worker waiting for ever.
        worker_pool="threads",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        # A message is done with when its night is; one that was done twice is left as it is.
        task_acks_late=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    if settings.broker_url and settings.broker_url.startswith("redis"):
        app.conf.broker_transport_options = {"visibility_timeout": VISIBILITY_TIMEOUT_S}
    return app


def _recover(sender: Any, **_: Any) -> None:
    sender.app.send_task("latentevolve.recover", expires=RECOVERY_EXPIRES_S)


def _say_what_is_ignored(**_: Any) -> None:
    for sentence in unknown_variables():
        logger.warning("%s", sentence)


def _do_not_wait_for_the_night(**_: Any) -> None:
    runner.stop()


worker_shutting_down.connect(_do_not_wait_for_the_night)
worker_init.connect(_say_what_is_ignored)
worker_ready.connect(_recover)

app = make_worker(Settings())
