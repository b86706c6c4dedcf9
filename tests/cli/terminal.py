"""Commands on a real terminal (a pty), as a person runs them."""

import fcntl
import os
import pty
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class OnTerminal:
    """A command whose stdin, stdout and stderr are one pty."""

    process: "subprocess.Popen[bytes]"
    master: int

    def read(self) -> str:
        """Return everything it writes until it ends."""
        seen = b""
        while True:
            try:
                chunk = os.read(self.master, 65536)
            except OSError:  # the last process on the pty has gone
                break
            if not chunk:
                break
            seen += chunk
        self.process.wait(30)
        os.close(self.master)
        return seen.decode("utf-8", "replace")

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.master, keys)

    def read_until(self, text: str) -> str:
        """Return what it writes up to and with `text`."""
        seen = b""
        while text.encode() not in seen:
            seen += os.read(self.master, 65536)
        return seen.decode("utf-8", "replace")


def on_terminal(arguments: list[str], env: dict[str, str], cwd: Path = ROOT) -> OnTerminal:
    """Start `latentevolve` with these arguments on a terminal of 120 columns."""
    master, slave = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that a typed Ctrl-C becomes a signal

    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=cwd,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", **env},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(slave)
    return OnTerminal(process, master)
