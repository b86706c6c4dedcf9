"""What is installed is whole: not only a checkout has what commands need."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
FIND = """
from cli.demo import UNRELATED
from cli.demonstration.stream import EXAMPLES, read_items, read_prompts
print(EXAMPLES, len(read_items(EXAMPLES / "topics.jsonl")), len(read_prompts(UNRELATED)))
"""


def test_installed_package_has_its_examples_and_programs(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("bench", "cli", "config", "examples", "memory", "model", "server", "worker"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)], cwd=source, check=True, timeout=120, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, installed, "zip")
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r}){FIND}"],
        cwd=tmp_path,
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert found.stdout.split() == [str(installed / "examples"), "240", "24"]
    assert (installed / "server" / "engine" / "programs" / "lscpu").is_file()
    for path in (ROOT / "server" / "dashboard").rglob("*.*"):
        assert (installed / path.relative_to(ROOT)).is_file(), path


def test_every_folder_of_the_project_that_is_imported_is_packaged() -> None:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    packaged = {name.rstrip("*") for name in found["include"]}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} <= packaged
