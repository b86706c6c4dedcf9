"""Files and folders are there completely or not at all, and what a dead writer leaves is swept."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memory.atomic import sweep, write_file, write_folder, write_json

ROOT = Path(__file__).parents[2]

WRITES = """
import sys
from pathlib import Path
from memory.atomic import write_file, write_folder

def fill(new):
    if new.is_dir():
        (new / "part").write_text("half")
    else:
        new.write_text("half")
    print(new, flush=True)
    sys.stdin.read()

{"file": write_file, "folder": write_folder}[sys.argv[1]](Path(sys.argv[2]), fill)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_only_what_nobody_writes_any_more_is_swept(tmp_path: Path, kind: str) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES, kind, str(tmp_path / "whole")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert writer.stdout is not None
        unfinished = Path(writer.stdout.readline().strip())
        assert unfinished.parent == tmp_path
        assert sweep(tmp_path) == 0
        assert unfinished.exists()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert unfinished.exists()
        assert sweep(tmp_path) == 1
        assert list(tmp_path.iterdir()) == []
    finally:
        writer.kill()
        writer.communicate()


def test_what_is_finished_or_not_ours_is_not_swept(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {})
    write_folder(tmp_path / "folder", lambda new: (new / "part").write_text("whole"))
    (tmp_path / ".hidden").write_text("")
    (tmp_path / ".gitignore.d").mkdir()
    assert sweep(tmp_path) == sweep(tmp_path / "not there") == 0
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, write: Callable[..., Any]) -> None:
    def fail(new: Path) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write(tmp_path / "whole", fail)
    assert list(tmp_path.iterdir()) == []


def test_writing_and_sweeping_at_once_spoil_nothing(tmp_path: Path) -> None:
    done = threading.Event()

    def sweep_on() -> None:
        while not done.is_set():
            sweep(tmp_path)

    sweeper = threading.Thread(target=sweep_on)
    sweeper.start()
    try:
        for number in range(200):
            write_file(tmp_path / "number", lambda new, n=number: new.write_text(str(n)), durable=False)
            assert (tmp_path / "number").read_text() == str(number)
    finally:
        done.set()
        sweeper.join()


@pytest.fixture
def nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks as NFS has them: exclusive ones only on what is open for writing."""
    flock = fcntl.flock

    def strict(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr("memory.atomic.fcntl.flock", strict)


@pytest.mark.usefixtures("nfs")
def test_files_and_folders_are_written_where_only_what_is_open_for_writing_can_be_locked(
    tmp_path: Path,
) -> None:
    write_json(tmp_path / "a.json", {})
    write_folder(tmp_path / "folder", lambda new: (new / "part").write_text("whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]


@pytest.mark.usefixtures("nfs")
def test_what_cannot_be_locked_stops_no_sweep(tmp_path: Path) -> None:
    name = "0" * 32
    (tmp_path / f".folder.{name}").mkdir()
    files = [tmp_path / f".{number}.{name}" for number in range(3)]
    for file in files:
        file.write_text("half")
    assert sweep(tmp_path) == 3
    assert [path.name for path in tmp_path.iterdir()] == [f".folder.{name}"]
