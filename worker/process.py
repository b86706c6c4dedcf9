"""The process in which a task of the worker runs, seen from the worker.

Owns its start, and that it ends when the worker is told to: nights go on from a checkpoint, so none is waited
for. Knows nothing of what it does (`worker/__main__.py`).
"""

import logging
import subprocess
import sys
import threading

logger = logging.getLogger(__name__)

STOPPED = 75
"""Exit code of a process that was told to stop, by whomever: sysexits' EX_TEMPFAIL."""
STOP_S = 5.0
"""How long what was told to stop may take; then it is killed, which costs it a count of its attempts."""


class StoppedError(Exception):
    """The worker was told to stop, or the process was killed: the task is for another time."""


class Runner:
    """Runs processes, one at a time, until it is told to stop.

    Args:
        command: What is run, before the words of the task.
    """

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "worker")) -> None:
        self._command = command
        self._starting = threading.RLock()  # a second signal comes in the midst of the first
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, *words: str) -> int:
        """Run a process to its end, and return its exit code. Blocks.

        Raises:
            StoppedError: it was told to stop, before or meanwhile, or killed, by lack of memory say.
        """
        # Once it is started it hears of a signal: before, the signal would be lost on the way.
        with self._starting:
            if self._stopped:
                raise StoppedError("the worker stops")
            self._process = subprocess.Popen([*self._command, *words])
        code = self._process.wait()
        if self._stopped:
            raise StoppedError("the worker stops")
        if code < 0 or code == STOPPED:
            raise StoppedError(f"killed by signal {-code}" if code < 0 else "told to stop")
        return code

    def stop(self) -> None:
        """Run nothing any more, and end what runs. For a signal handler: it does not wait."""
        with self._starting:
            self._stopped = True
            process = self._process
        if process is not None:
            process.terminate()
            killing = threading.Timer(STOP_S, process.kill)
            killing.daemon = True
            killing.start()
