"""What the command line says of itself, and completes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cli.main import app
from tests.cli.conftest import Ran

Run = Callable[..., Ran]

NAMES_WIDTH = 80 - 6
"""Of a line of a list of commands, without its margins."""


def commands(
    command: Any, context: Any = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, int]]:
    """Yield every command with its path and the room that a list leaves for what it says of itself."""
    here = command.context_class(command, info_name="latentevolve", parent=context)
    if not hasattr(command, "list_commands"):
        return
    names = command.list_commands(here)
    for name in names:
        found = command.get_command(here, name)
        yield (*path, name), found, NAMES_WIDTH - max(map(len, names))
        yield from commands(found, here, (*path, name))


ALL = list(commands(get_command(app)))


def test_every_list_of_commands_fits_a_terminal() -> None:
    assert len(ALL) > 30
    cut = [path for path, command, room in ALL if command.get_short_help_str(room).endswith("...")]
    assert not cut, "let the first sentence of the docstring be shorter"


def test_every_option_and_argument_says_what_it_is() -> None:
    for path, command, _ in ALL:
        for parameter in command.params:
            assert parameter.help, f"{path}: {parameter.name}"


def test_every_command_can_be_read_by_a_program() -> None:
    for path, command, _ in ALL:
        options = {option for parameter in command.params for option in parameter.opts}
        assert hasattr(command, "list_commands") or "--json" in options, path


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("me", ["memory"]),
        ("memory exp", ["export"]),
        ("priors roll", ["rollback"]),
        ("ask --effort h", ["high"]),
        ("bench st", ["step", "stream"]),
        ("stats --js", ["--json"]),
    ],
)
def test_words_are_completed(run: Run, monkeypatch: pytest.MonkeyPatch, words: str, found: list[str]) -> None:
    monkeypatch.setenv("_LATENTEVOLVE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"latentevolve {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    assert run().out.split() == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_and_installed(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: str
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, f"/bin/{shell}"))
    monkeypatch.setenv("HOME", str(tmp_path))
    shown = run("--show-completion")
    assert (shown.code, "_LATENTEVOLVE_COMPLETE" in shown.out) == (0, True)
    assert run("--install-completion").code == 0
    assert any("latentevolve" in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.parametrize("url", ["localhost:8000", "http://[::1", "http://localhost:abc"])
def test_what_is_no_url_is_told_from_a_gateway_that_is_away(run: Run, url: str) -> None:
    ran = run("stats", "--url", url)
    assert ran.code == 2
    assert "no URL" in ran.err
    assert "http://HOST:PORT" in ran.err
