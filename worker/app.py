"""The Celery app of the worker: `celery -A worker.app worker`.

Owns how nights are executed: one at a time, in a child process that ends with its night and so gives
its memory back, at low priority beside the gateway. Knows nothing of what a night does.
"""

import os
import signal
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_ready, worker_shutting_down

from config.queue import make_celery
from config.settings import Settings

NICENESS = 10
RECOVERY_EXPIRES_S = 600
VISIBILITY_TIMEOUT_S = 6 * 3600
"""Redis gives a message that was not acknowledged for so long to another worker."""


def make_worker(settings: Settings) -> Celery:
    """Return the worker's app."""
    app = make_celery(settings)
    app.conf.update(
        imports=["worker.tasks"],
        worker_pool="prefork",
        worker_concurrency=1,
        worker_max_tasks_per_child=1,
        worker_prefetch_multiplier=1,
        # A child that was killed gives its night back; one that was done twice is left as it is.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    if settings.broker_url and settings.broker_url.startswith("redis"):
        app.conf.broker_transport_options = {"visibility_timeout": VISIBILITY_TIMEOUT_S}
    return app


def _yield_to_the_gateway(**_: Any) -> None:
    os.nice(NICENESS)


def _recover(sender: Any, **_: Any) -> None:
    sender.app.send_task("latentevolve.recover", expires=RECOVERY_EXPIRES_S)


def _do_not_wait_for_the_night(how: str, **_: Any) -> None:
    """Turn a warm shutdown, which would wait minutes, into a cold one: nights go on from a checkpoint.

    Who ends a worker asks for a warm one: what a shell runs in the background starts with SIGQUIT ignored,
    and would not hear of a cold one before Celery listens.
    """
    from celery.worker.state import active_requests

    if how == "Warm" and active_requests:
        os.kill(os.getpid(), signal.SIGQUIT)


worker_shutting_down.connect(_do_not_wait_for_the_night)
worker_process_init.connect(_yield_to_the_gateway)
worker_ready.connect(_recover)

app = make_worker(Settings())
