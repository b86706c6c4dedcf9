"""The whole `serve` command, with a gateway that has no model and a real Celery worker."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cli.demonstration.tree import own_tree
from cli.failure import CommandError
from cli.screen import Screen
from config.settings import Settings
from tests.cli.project import Project, make_project
from tests.cli.terminal import on_terminal

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = make_project(tmp_path)
    yield made
    made.clear()


def start(project: Project, *extra: str, **env: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *project.arguments, *extra],
        cwd=project.folder,
        env={**os.environ, **project.env, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_as_in_the_background,
    )
    project.started.append(process)
    return process


def _as_in_the_background() -> None:
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)


def wait_for_line(process: "subprocess.Popen[str]", found: Callable[[str], bool]) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found(line):
            return lines
    raise AssertionError(f"ended early: {lines}")


def test_ready_box_and_clean_end_in_a_pipe(project: Project) -> None:
    process = start(project)
    lines = wait_for_line(process, lambda line: line.startswith("  stop"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    shown = "".join(lines) + out
    assert process.returncode == 0, err
    for item in ("model", "gateway", "engine", "self-checks", "memory", "worker"):
        assert any(line.startswith(f"✓ {item}") for line in lines), item
    assert f"http://127.0.0.1:{project.port}/v1" in shown
    assert "curl http://127.0.0.1" in shown
    assert "gateway │ weights are loading" in shown
    assert not [c for c in shown if ord(c) < 32 and c not in "\n\t"]
    assert set(project.sessions()) == {"model", "gateway", "worker"}
    assert project.left() == []


def test_json_tells_of_the_start_and_of_a_gateway_that_comes_back_while_the_worker_lives_on(
    project: Project,
) -> None:
    """Events are on stdout, logs on stderr, and options are the children's settings."""
    process = start(project, "--json", "--effort", "high")
    started = [json.loads(line) for line in wait_for_line(process, lambda line: '"ready"' in line)]
    assert {event["name"] for event in started if event["event"] == "check"} >= {"engine", "worker"}
    before = project.sessions()
    os.kill(before["gateway"], signal.SIGKILL)
    events = [json.loads(line) for line in wait_for_line(process, lambda line: '"ready"' in line)]
    assert httpx.get(f"http://127.0.0.1:{project.port}/readyz").status_code == 200
    env = httpx.get(f"http://127.0.0.1:{project.port}/env").json()
    assert env["LATENTEVOLVE_DEFAULT_EFFORT"] == "high"
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert [event["event"] for event in events] == ["ended", "restart", "started", *["check"] * 4, "ready"]
    assert {event["name"] for event in events[:3]} == {"gateway"}
    assert [event["name"] for event in events[3:7]] == ["gateway", "engine", "memory", "self-checks"]
    after = project.sessions()
    assert after["worker"] == before["worker"]
    assert after["gateway"] != before["gateway"]
    assert json.loads(out.splitlines()[-1]) == {"event": "stopped", "code": 0}
    assert "weights are loading" in err


def test_failed_self_check_is_shown_and_steering_said_to_be_off(project: Project) -> None:
    process = start(project, "--no-worker", BAD_CHECK="1")
    shown = "".join(wait_for_line(process, lambda line: line.startswith("  stop")))
    process.terminate()
    process.communicate(timeout=60)
    assert "✗ self-checks" in shown
    assert "mixed-prompt: cosine 0.2" in shown
    assert "none (a self-check failed" in shown
    assert set(project.sessions()) == {"model", "gateway"}


def test_gateway_that_cannot_start_ends_all_with_its_code_and_words(project: Project) -> None:
    process = start(project, FAIL="1")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "gateway ended (exit code 4); its last lines:" in out
    assert "  weights are loading" in out
    assert project.left() == []
    assert "--- ended, killed by SIGKILL" not in (project.data / "logs" / "worker.log").read_text()


def test_reader_that_goes_away_does_not_end_the_server(project: Project) -> None:
    process = start(project, "--no-worker")
    wait_for_line(process, lambda line: line.startswith("  stop"))
    assert process.stdout is not None
    process.stdout.close()
    time.sleep(1.0)
    assert project.left() == ["gateway"]
    process.terminate()
    process.communicate(timeout=60)
    assert project.left() == []


def test_terminal_shows_a_box_and_ctrl_c_ends_it(project: Project) -> None:
    seen = on_terminal(project.arguments, project.env, cwd=project.folder)
    shown = seen.read_until("Ctrl-C")
    assert "╭" in shown
    assert "\x1b[" in shown
    seen.type(b"\x03")
    rest = seen.read()
    assert seen.process.returncode == 0, rest
    assert project.left() == []


def test_demo_runs_a_tree_of_its_own_and_ends_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.folder)
    for name, value in {**project.env, "LATENTEVOLVE_MEMORY_URL": "http://127.0.0.1:1"}.items():
        monkeypatch.setenv(name, value)
    in_file = "LATENTEVOLVE_MEMORY_URL=http://127.0.0.1:2\nLATENTEVOLVE_BROKER_URL=redis://127.0.0.1:3\n"
    (project.folder / ".env").write_text(in_file)
    with own_tree(Screen(), project.data) as (url, _):
        env = httpx.get(f"{url}/env").json()
        for name in ("LATENTEVOLVE_MEMORY_URL", "LATENTEVOLVE_BROKER_URL"):
            monkeypatch.setenv(name, env[name])
        seen = Settings()  # as the children read it, in the same folder
        assert (seen.memory_url, seen.broker_url) == (None, None), "what is used otherwise is left alone"
        assert env["LATENTEVOLVE_NIGHT_CRON"] == "never"
        assert set(project.left()) == {"gateway", "worker"}
    assert project.left() == []


def test_demo_says_why_its_tree_could_not_start(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.folder)
    for name, value in {**project.env, "FAIL": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CommandError, match="ended before it was ready"), own_tree(Screen(), project.data):
        pass
    assert "weights are loading" in capsys.readouterr().err
