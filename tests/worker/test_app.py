"""How the worker's Celery app is set."""

from pathlib import Path

from config.settings import Settings
from worker.app import make_worker


def test_redis_gives_a_night_time_before_it_is_delivered_again(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:9/0", _env_file=None)
    assert make_worker(settings).conf.broker_transport_options["visibility_timeout"] >= 3600
