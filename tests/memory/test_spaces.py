"""Memories are found under the id that they were written with."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from config.settings import Settings
from memory import qdrant_store
from memory.episode import StoreUnavailableError
from memory.spaces import memory_id

OWN, EARLIER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path / "data")


@pytest.mark.parametrize("folder", ["episodes", "priors"])
def test_memories_of_an_earlier_build_go_on_and_survive_a_renamed_model(
    settings: Settings, folder: str
) -> None:
    (settings.data_dir / folder / EARLIER).mkdir(parents=True)
    assert memory_id(settings, OWN, [EARLIER]) == EARLIER
    assert memory_id(settings, OWN, ["id-of-the-new-name"]) == EARLIER


def test_a_space_without_memories_is_known_by_its_own_id_for_good(settings: Settings) -> None:
    assert memory_id(settings, OWN, [EARLIER]) == OWN
    (settings.data_dir / "episodes" / EARLIER).mkdir(parents=True)
    assert memory_id(settings, OWN, [EARLIER]) == OWN


def test_memories_that_are_left_behind_are_named_with_what_to_do(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    (settings.data_dir / "episodes" / "of-a-forgotten-name").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert memory_id(settings, OWN, [EARLIER]) == OWN
    (said,) = caplog.messages
    assert "of-a-forgotten-name" in said
    path = settings.data_dir / "spaces.json"
    assert f"write its id beside {OWN} in {path}" in said
    path.write_text(json.dumps({OWN: "of-a-forgotten-name"}))
    assert memory_id(settings, OWN, [EARLIER]) == "of-a-forgotten-name"


def test_two_models_keep_their_memories_apart(settings: Settings) -> None:
    (settings.data_dir / "episodes" / EARLIER).mkdir(parents=True)
    assert memory_id(settings, "another", ["another-earlier"]) == "another"
    assert memory_id(settings, OWN, [EARLIER]) == EARLIER


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[QdrantClient]:
    """A Qdrant server with one collection, in this process."""
    client = QdrantClient(":memory:")
    qdrant_store.QdrantStore(client, space=EARLIER, length=2, hidden_size=4)
    monkeypatch.setattr(qdrant_store, "connect", lambda *_: client)
    yield client
    client.close()


def test_collections_of_an_earlier_build_go_on(settings: Settings, server: QdrantClient) -> None:
    served = settings.model_copy(update={"memory_url": "http://qdrant"})
    assert memory_id(served, OWN, [EARLIER]) == EARLIER


def test_nothing_is_decided_while_the_server_is_away(settings: Settings) -> None:
    away = settings.model_copy(update={"memory_url": "http://127.0.0.1:1"})
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        memory_id(away, OWN, [EARLIER])
    assert not (settings.data_dir / "spaces.json").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}'])
def test_a_spoilt_file_is_an_error_that_names_it(settings: Settings, content: str) -> None:
    settings.data_dir.mkdir(parents=True)
    (settings.data_dir / "spaces.json").write_text(content)
    with pytest.raises(StoreUnavailableError, match=r"spaces\.json cannot be used"):
        memory_id(settings, OWN, [EARLIER])
