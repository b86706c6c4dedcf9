"""Processes of the worker's tasks, and their end."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker import process
from worker.process import Runner, StoppedError

STUBBORN = "import signal, pathlib, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
MARKED = "import pathlib, sys, time; "
WAITING = "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"


def runner(code: str) -> Runner:
    return Runner((sys.executable, "-I", "-S", "-c", code))


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def wait_for(file: Path) -> None:
    pause = threading.Event()
    while not file.exists():
        pause.wait(0.01)


def test_a_task_is_told_how_its_process_ended() -> None:
    assert runner("").run() == 0
    assert runner("import sys; raise SystemExit(len(sys.argv))").run("night", "7") == 3


@pytest.mark.parametrize("code", [MARKED, STUBBORN])
def test_a_worker_that_is_told_to_stop_ends_what_it_runs_and_runs_nothing_more(
    tmp_path: Path, thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(process, "STOP_S", 0.1)
    running = runner(code + WAITING)
    task = thread.submit(running.run, str(tmp_path / "began"))
    wait_for(tmp_path / "began")
    running.stop()
    with pytest.raises(StoppedError):
        task.result(30)
    with pytest.raises(StoppedError):
        running.run(str(tmp_path / "another"))
    assert not (tmp_path / "another").exists()


def test_a_stop_in_the_midst_of_a_start_is_heard(
    tmp_path: Path, thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting, stopping = threading.Event(), threading.Event()
    popen = subprocess.Popen

    def slow(*command: object, **named: object) -> "subprocess.Popen[bytes]":
        starting.set()
        assert stopping.wait(30)
        return popen(*command, **named)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(process.subprocess, "Popen", slow)
    running = runner(MARKED + WAITING)
    task = thread.submit(running.run, str(tmp_path / "began"))
    assert starting.wait(30)
    stop = threading.Thread(target=running.stop)
    stop.start()
    stopping.set()
    with pytest.raises(StoppedError):
        task.result(30)
    stop.join()


def test_a_process_that_was_told_to_stop_by_others_is_for_another_time() -> None:
    with pytest.raises(StoppedError):
        runner(f"raise SystemExit({process.STOPPED})").run()


def test_a_task_whose_process_is_killed_is_for_another_time(
    tmp_path: Path, thread: ThreadPoolExecutor
) -> None:
    code = MARKED + "import os; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
    pid = tmp_path / "pid"
    task = thread.submit(runner(code).run, str(pid))
    while not (pid.exists() and pid.read_text()):
        threading.Event().wait(0.01)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    with pytest.raises(StoppedError, match="signal 9"):
        task.result(30)
