"""Ends what a killed supervisor leaves behind.

Run by path as `guard.py GRACE_S`, with a pipe from the supervisor as standard input. Each line
names the session of a child: `+123` started, `-123` ended. When the pipe closes, whatever is left
gets SIGTERM and, after the grace, SIGKILL. Works without root and reaches grandchildren, which
PR_SET_PDEATHSIG does not. Imports nothing of the project: it must start at once and stay small.
"""

import contextlib
import os
import signal
import sys
import time


def members(sessions: set[int]) -> list[int]:
    """Return the living processes of these sessions, zombies left out (Linux: reads /proc)."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                # pid (name) state ppid pgrp session …; the name may hold blanks and brackets
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        if fields[0] != "Z" and int(fields[3]) in sessions:
            found.append(int(entry))
    return found


def send(processes: list[int], number: int) -> None:
    """Send a signal to processes, some of which may have gone."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def sweep(sessions: set[int], grace_s: float) -> None:
    """End all processes of these sessions: SIGTERM, and SIGKILL after the grace."""
    deadline = time.monotonic() + grace_s
    # Leaders first and alone: a server that is told ends its own workers in order.
    send([session for session in sessions if members({session})], signal.SIGTERM)
    while members(sessions):
        if time.monotonic() > deadline:
            send(members(sessions), signal.SIGKILL)
        time.sleep(0.05)


def main() -> None:
    """Follow the supervisor until it has gone, then sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when the supervisor has ended, not before
    sessions: set[int] = set()
    pending = b""
    while chunk := os.read(0, 4096):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            (sessions.add if line[:1] == b"+" else sessions.discard)(int(line[1:]))
    sweep(sessions, float(sys.argv[1]))


if __name__ == "__main__":
    main()
