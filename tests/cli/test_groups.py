"""Groups of commands that other packages bring: loaded when asked for, and harmless when broken."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ran

Run = Callable[..., Ran]
ROOT = Path(__file__).parents[2]

GOOD = """
import typer
app = typer.Typer(help="Greets.")

@app.command()
def hello(name: str) -> None:
    print(f"hello {name}")

@app.command()
def bye() -> None: ...
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return what installs a module as a package that brings a group of the same name."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, source: str) -> None:
        (tmp_path / f"{name}_commands.py").write_text(source)
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[latentevolve.commands]\n{name} = {name}_commands:app\n")

    return install


def test_group_of_another_package_is_listed_and_runs(run: Run, installed: Callable[[str, str], None]) -> None:
    installed("greetings", GOOD)
    listed = run("--help")
    assert listed.code == 0
    assert "Greets." in listed.out
    assert listed.err == ""
    assert run("greetings", "hello", "Ada").out == "hello Ada\n"
    assert "--install-completion" not in run("greetings", "-h").out


@pytest.mark.parametrize(
    "source", ["import nowhere_to_be_found", "app = 3", "def app(", "raise OSError('x')"]
)
def test_broken_group_is_a_warning_and_costs_the_others_nothing(
    run: Run, installed: Callable[[str, str], None], source: str
) -> None:
    installed("broken", source)
    listed = run("--help")
    assert listed.code == 0
    assert "serve" in listed.out
    assert "broken" not in listed.out
    assert listed.err.startswith("Warning: the command broken cannot be loaded")
    assert listed.err.count("Warning") == 1
    assert run("stats", "--help").err == ""
    asked = run("broken", "--help")
    assert asked.code == 1
    assert asked.err.startswith("Error: the command broken cannot be loaded")


def test_group_does_not_replace_a_command_of_this_package(
    run: Run, installed: Callable[[str, str], None]
) -> None:
    installed("stats", "raise OSError('never imported')")
    assert run("stats", "--help").code == 0
    assert "never imported" not in run("--help").err


def test_name_that_nobody_brings_is_wrong_usage(run: Run) -> None:
    assert run("nonsense").code == 2


def test_other_commands_do_not_import_the_benchmarks() -> None:
    code = (
        "import sys; from cli.main import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit as ended: sys.exit(ended.code or 'bench' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
