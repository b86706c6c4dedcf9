"""The pipe by which the guard knows that this process lives.

Owns starting `guard.py`. Children are told to it by `leash.py`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lifeline(grace_s: float, hold_fds: Sequence[int] = ()) -> Iterator[int]:
    """Run a guard and yield the pipe to it; when the pipe closes, the guard ends what is left.

    Args:
        grace_s: How long children may take to end before the guard kills them.
        hold_fds: Descriptors that the guard keeps open until nothing is left.
    """
    reading, writing = os.pipe()
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), str(grace_s)],
        stdin=reading,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=tuple(hold_fds),
    )
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)
        guard.wait()
