"""The README says what is there."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from typer.testing import CliRunner

from cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_linked_file_exists() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_folder_of_the_tree_exists_and_none_is_left_out() -> None:
    tree = README.split("## Where things are")[1].split("```")[1]
    listed = set(re.findall(r"^(\w+)/", tree, re.MULTILINE))
    there = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith((".", "_")) and not path.name.endswith(".egg-info")
    }
    assert listed <= there
    assert there - {"data", "build"} <= listed


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z][\w-]*)", "\n".join(BLOCKS)))
    assert named
    assert named <= targets


def test_every_command_exists() -> None:
    commands = re.findall(r"^latentevolve (\w+)", "\n".join(BLOCKS), re.MULTILINE)
    assert {"ask", "night", "priors", "stats"} <= set(commands)
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command


def test_page_of_files_is_up_to_date() -> None:
    text = (ROOT / "docs" / "files.md").read_text()
    assert text == script("files").page(), "run scripts/files.py"


def test_a_newcomer_reads_it_in_a_minute() -> None:
    assert len(README.splitlines()) <= 120
