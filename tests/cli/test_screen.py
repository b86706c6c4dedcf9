"""Writing for a person, a pipe and a script."""

import json

import pytest

from cli.screen import Screen, bar, printable


def test_control_characters_are_dropped_and_text_kept() -> None:
    assert printable("a\x1b[1m\x07b\r\n\tç 漢 🙂\x9b") == "a[1mb\n\tç 漢 🙂"


def test_long_lines_are_not_wrapped_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().line("x" * 500)
    assert capsys.readouterr().out == "x" * 500 + "\n"


def test_markup_in_data_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().table(("name",), [("[red]no markup[/red] :smile:",)])
    assert "[red]no markup[/red] :smile:" in capsys.readouterr().out


def test_events_are_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(as_json=True)
    screen.event("ended", name="worker", code=1)
    screen.line("for a person")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"event": "ended", "name": "worker", "code": 1}
    assert err == "for a person\n"


def test_small_share_still_shows() -> None:
    assert bar(0.0) == ""
    assert bar(1e-6) == "█"
    assert len(bar(1.0, 30)) == 30
