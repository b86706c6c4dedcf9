"""Which store the settings open."""

from pathlib import Path

import pytest

from config.settings import Settings
from memory.edge_store import EdgeStore
from memory.episode import StoreUnavailableError
from memory.open import open_store


def test_without_a_url_episodes_are_in_the_data_folder(tmp_path: Path) -> None:
    store = open_store(Settings(_env_file=None, data_dir=tmp_path), "space-a", 4, 32)
    assert isinstance(store, EdgeStore)
    assert (tmp_path / "episodes" / "space-a").is_dir()
    store.close()


def test_a_url_asks_that_server(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, memory_url="http://127.0.0.1:1")
    with pytest.raises(StoreUnavailableError, match="latentevolve-space-a"):
        open_store(settings, "space-a", 4, 32)
    assert list(tmp_path.iterdir()) == []
