"""Snapshots: what a night reads is what the gateway wrote."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memory.episode import Episode
from memory.snapshot import SnapshotError, read_snapshot, write_snapshot

Make = Callable[..., Episode]


def test_episodes_come_back_in_their_order(tmp_path: Path, make_episode: Make) -> None:
    episodes = [make_episode(reward=i / 10, answer_token_ids=(i, 2), trace_id="t") for i in range(10)]
    path = tmp_path / "snapshots" / "night"
    assert write_snapshot(iter(episodes), path) == 10
    read = list(read_snapshot(path))
    assert [e.summary() for e in read] == [e.summary() for e in episodes]
    for one, other in zip(read, episodes, strict=True):
        assert np.array_equal(one.key, other.key)
        assert np.array_equal(one.latent, other.latent.astype(np.float16).astype(np.float32))
        assert one.key.dtype == one.latent.dtype == np.float32
        assert isinstance(one.prompt_token_ids, tuple)


def test_any_text_survives(tmp_path: Path, make_episode: Make) -> None:
    text = 'a\nb\r\nc\x00\x0b\x1c\x85\u2028\u2029 🧠 \\n "'
    write_snapshot([make_episode(prompt_text=text, answer_text=text)], tmp_path / "s")
    (read,) = read_snapshot(tmp_path / "s")
    assert (read.prompt_text, read.answer_text) == (text, text)


def test_an_empty_snapshot_is_one(tmp_path: Path) -> None:
    assert write_snapshot([], tmp_path / "s") == 0
    assert list(read_snapshot(tmp_path / "s")) == []


def test_a_snapshot_is_not_written_twice(tmp_path: Path, make_episode: Make) -> None:
    write_snapshot([make_episode()], tmp_path / "s")
    with pytest.raises(SnapshotError, match="already"):
        write_snapshot([make_episode(), make_episode()], tmp_path / "s")
    assert len(list(read_snapshot(tmp_path / "s"))) == 1


def test_spaces_and_shapes_do_not_mix(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode()
    for stranger in (replace(episode, space="space-b"), replace(episode, latent=episode.latent[:-1])):
        with pytest.raises(SnapshotError, match="different"):
            write_snapshot([episode, stranger], tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_fails_leaves_nothing(tmp_path: Path, make_episode: Make) -> None:
    def failing() -> object:
        yield make_episode()
        raise ConnectionError("the store went away")

    with pytest.raises(ConnectionError):
        write_snapshot(failing(), tmp_path / "s")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["gone", "cut", "short", "empty", "longer", "changed"])
def test_a_damaged_snapshot_is_an_error_that_names_it(
    tmp_path: Path, make_episode: Make, damage: str
) -> None:
    path = tmp_path / "s"
    write_snapshot([make_episode(), make_episode()], path)
    (file,) = path.iterdir()
    first, second, last = file.read_bytes().splitlines(keepends=True)
    if damage == "gone":
        file.unlink()
    else:
        left = {
            "cut": first + second[:-10],
            "short": first + last,
            "empty": b"",
            "longer": first + second + last + first,
            "changed": first.replace(b"0.75", b"0.76") + second + last,
        }
        file.write_bytes(left[damage])
    with pytest.raises(SnapshotError, match=str(path)):
        list(read_snapshot(path))


def test_a_missing_snapshot_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="nowhere"):
        list(read_snapshot(tmp_path / "nowhere"))
