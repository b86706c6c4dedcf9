"""`pull`: the folder on stdout, progress on stderr, and a way out when it cannot."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Ran

Run = Callable[..., Ran]


def test_folder_is_checked_and_printed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert run("pull", "--model", str(tmp_path)).out == f"{tmp_path}\n"
    assert json.loads(run("pull", "--model", str(tmp_path), "--json").out)["path"] == str(tmp_path)


def test_model_that_is_not_there_says_what_may_be_given(run: Run, tmp_path: Path) -> None:
    ran = run("pull", "--model", str(tmp_path / "missing"))
    assert ran.code == 1
    assert ran.out == ""
    assert "Give an existing folder" in ran.err
