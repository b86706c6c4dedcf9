"""The queue between the gateway, which asks for nights, and the worker, which runs them.

Owns transport and task name. Knows nothing of what a night does.
"""

from pathlib import Path

from celery import Celery

from config import folder_queue
from config.settings import Settings

QUEUE = "nights"
NIGHT_TASK = "latentevolve.night"
"""Name of the task that runs one consolidation; its only argument is the run's id."""
SOCKET_TIMEOUT_S = 5.0
"""Of a gateway that waits for Redis."""


def make_celery(settings: Settings) -> Celery:
    """Return a Celery app on Redis when `broker_url` is set, else on a folder under `data_dir`."""
    app = Celery("latentevolve")
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,  # the run's record is the result
        task_serializer="json",
        accept_content=["json"],
        timezone="UTC",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # however long the broker is away
    )
    if settings.broker_url:
        app.conf.broker_url = settings.broker_url
        return app
    root = settings.data_dir.resolve() / "queue"
    app.conf.broker_url = folder_queue.URL
    app.conf.broker_transport_options = {
        "data_folder_in": _folder(root / "messages"),
        "data_folder_out": _folder(root / "messages"),
        "processed_folder": _folder(root / "processed"),
        "control_folder": _folder(root / "control"),
        "store_processed": False,
    }
    return app


class NightQueue:
    """The queue as a gateway uses it. Calls block, with Redis for some seconds when it does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._celery = make_celery(settings)
        if settings.broker_url and settings.broker_url.startswith("redis"):
            timeouts = {"socket_timeout": SOCKET_TIMEOUT_S, "socket_connect_timeout": SOCKET_TIMEOUT_S}
            self._celery.conf.broker_transport_options = timeouts

    def send(self, night_id: str) -> None:
        """Queue a night; raises whatever the transport does when the broker does not answer."""
        # Celery would go on trying for minutes while the client waits.
        self._celery.send_task(NIGHT_TASK, args=(night_id,), retry=False)

    def waiting(self) -> int:
        """Return how many messages no worker has taken; raises as `send` does."""
        with self._celery.connection_for_write() as connection:
            queue = self._celery.amqp.queues[QUEUE](connection.default_channel)
            queue.declare()
            return int(queue.queue_declare(passive=True).message_count)


def _folder(path: Path) -> str:
    path.mkdir(parents=True, exist_ok=True)
    return str(path)
