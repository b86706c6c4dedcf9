"""The queue between the gateway, which asks for nights, and the worker, which runs them.

Owns transport and task name. Knows nothing of what a night does.
"""

from pathlib import Path

from celery import Celery

from config.settings import Settings

NIGHT_TASK = "latentevolve.night"
"""Name of the task that runs one consolidation; its only argument is the run's id."""


def make_celery(settings: Settings) -> Celery:
    """Return a Celery app on Redis when `broker_url` is set, else on a folder under `data_dir`."""
    app = Celery("latentevolve")
    app.conf.update(
        task_default_queue="nights",
        task_ignore_result=True,  # the run's record is the result
        task_serializer="json",
        accept_content=["json"],
        timezone="UTC",
        broker_connection_retry_on_startup=True,
    )
    if settings.broker_url:
        app.conf.broker_url = settings.broker_url
        return app
    root = queue_folder(settings)
    app.conf.broker_url = "filesystem://"
    app.conf.broker_transport_options = {
        "data_folder_in": _folder(root / "messages"),
        "data_folder_out": _folder(root / "messages"),
        "processed_folder": _folder(root / "processed"),
        "control_folder": _folder(root / "control"),
        "store_processed": False,
    }
    return app


def queue_folder(settings: Settings) -> Path:
    """Return the folder of messages and of beat's schedule, made when it is not there."""
    return Path(_folder(settings.data_dir.resolve() / "queue"))


def _folder(path: Path) -> str:
    path.mkdir(parents=True, exist_ok=True)
    return str(path)
