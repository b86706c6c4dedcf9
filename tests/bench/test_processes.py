"""Counting what processes take."""

import subprocess
import sys

from bench.processes import family, memory, resident_mib


def test_family_reaches_grandchildren_and_knows_the_dead() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()  # the grandchild runs
    assert len(family(child.pid)) == 2
    found = memory(child.pid)
    assert len(found["processes"]) == 2
    assert found["total_mib"] == sum(each["mib"] for each in found["processes"]) > 0
    child.communicate("\n")
    assert family(child.pid) == []


def test_this_process_is_in_memory() -> None:
    assert resident_mib() > 0
