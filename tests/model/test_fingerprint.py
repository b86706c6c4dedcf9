"""The space id follows the files, not the folder they lie in."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from model.engine import ModelUnavailableError
from model.fingerprint import checkpoint_dtype, model_folder, revision, space_of
from model.space import LatentSpace

EARLIER = "2ccbce05e12b22cc"


class Template:
    chat_template = "{{ messages }}"


def checkpoint(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", **config}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(64) if config else bytes(3 << 20))
    return folder


def test_same_files_in_a_folder_of_another_name_are_the_same_space(tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path / "a" / "tiny"), checkpoint(tmp_path / "b" / "renamed")
    assert revision(one) == revision(two)
    spaces = [space_of(folder, Template(), 8, "torch.bfloat16", 4, "user_turn_end") for folder in (one, two)]
    assert spaces[0].id == spaces[1].id
    assert spaces[0].earlier_id != spaces[1].earlier_id
    assert (spaces[0].model, spaces[1].model) == ("tiny", "renamed")
    assert spaces[0].dtype == "bfloat16"


@pytest.mark.parametrize("change", ["config.json", "tokenizer.json", "first byte", "last byte", "size"])
def test_any_change_of_the_model_changes_the_revision(tmp_path: Path, change: str) -> None:
    folder = checkpoint(tmp_path / "tiny")
    before = revision(folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    if change.endswith(".json"):
        (folder / change).write_text('{"changed": true}')
    elif change == "size":
        weights += b"\0"
    else:
        weights[0 if change == "first byte" else -1] = 1
    (folder / "model.safetensors").write_bytes(weights)
    assert revision(folder) != before


def test_length_placement_and_template_make_other_spaces(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "tiny")
    other = Template()
    other.chat_template = "{{ messages[0] }}"
    ids = {
        space_of(folder, Template(), 8, "bfloat16", 4, "user_turn_end").id,
        space_of(folder, Template(), 8, "bfloat16", 5, "user_turn_end").id,
        space_of(folder, Template(), 8, "bfloat16", 4, "after_header").id,
        space_of(folder, other, 8, "bfloat16", 4, "user_turn_end").id,
    }
    assert len(ids) == 4


def test_another_neutral_start_makes_another_space(tmp_path: Path) -> None:
    space = space_of(checkpoint(tmp_path / "tiny"), Template(), 8, "bfloat16", 4, "after_header")
    assert replace(space, neutral_version=space.neutral_version + 1).id != space.id


def test_the_id_of_earlier_builds_can_still_be_told(tmp_path: Path) -> None:
    space = LatentSpace("tiny", "r", "t", 4, 8, "after_header", "bfloat16", 1, 2)
    # What a build of 2026-11-26 gave.
    assert space.earlier_id == EARLIER
    assert replace(space, known_as="elsewhere").earlier_id == EARLIER
    assert replace(space, known_as="elsewhere").own_id == space.id


def test_a_hub_snapshot_is_named_after_its_repository(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "models--owner--tiny-chat" / "snapshots" / "0123abcd")
    assert space_of(folder, Template(), 8, "bfloat16", 4, "user_turn_end").model == "owner/tiny-chat"


def test_dtype_is_the_checkpoints_own(tmp_path: Path) -> None:
    assert checkpoint_dtype(checkpoint(tmp_path / "a")) == "bfloat16"
    assert checkpoint_dtype(checkpoint(tmp_path / "b", dtype=None, torch_dtype="float16")) == "float16"


def test_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"config\.json"):
        model_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelUnavailableError, match="no weights"):
        revision(tmp_path)
    with pytest.raises(ModelUnavailableError, match="neither a folder"):
        model_folder("owner/not-in-the-cache")
