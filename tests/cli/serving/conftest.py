"""A supervised tree of tiny children, watched from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PATIENCE_S = 30.0


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


class Tree:
    """One running supervisor; its children note their process ids in `folder/pids`."""

    def __init__(self, folder: Path, children: dict, **options: object) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.cli.serving.tree",
                str(folder),
                json.dumps({"children": children, **options}),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self) -> list[int]:
        """Return the ids that children have noted so far."""
        notes = self.folder / "pids"
        return [int(line) for line in notes.read_text().split()] if notes.exists() else []

    def wait_for_pids(self, count: int) -> list[int]:
        """Return the noted ids once there are `count`."""
        eventually(lambda: len(self.pids()) >= count, f"{count} children")
        return self.pids()

    def wait_for_ready(self, count: int) -> None:
        """Wait until children were seen to be ready so many times."""
        notes = self.folder / "ready"
        eventually(lambda: notes.exists() and len(notes.read_text().split()) >= count, f"{count} times ready")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, list[dict], str]:
        """Send a signal and return exit code, events and what was said."""
        self.process.send_signal(number)
        return self.outcome()

    def outcome(self) -> tuple[int, list[dict], str]:
        """Wait for the end; return exit code, events and what was said."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], err


@pytest.fixture
def grow(tmp_path: Path) -> Iterator[Callable[..., Tree]]:
    """Start trees; what is left of them at the end is killed."""
    trees: list[Tree] = []

    def start(children: dict, **options: object) -> Tree:
        trees.append(Tree(tmp_path, children, **options))
        return trees[-1]

    yield start
    for tree in trees:
        if tree.process.poll() is None:
            tree.process.kill()
        tree.process.communicate()
        for pid in tree.pids():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
