"""Starts one child so that the guard knows of it before it can do anything.

Run by path as `leash.py GUARD_FD COMMAND…`, in a session of its own. Writes its process id to the
guard, then becomes the command. The supervisor cannot do this itself: if it were killed between
starting a child and telling the guard, the child would be left behind.
"""

import contextlib
import os
import sys


def main() -> None:
    """Tell the guard, close the way to it, become the command."""
    guard = int(sys.argv[1])
    with contextlib.suppress(OSError):  # the guard has gone: the supervisor will notice
        os.write(guard, b"+%d\n" % os.getpid())
    os.set_inheritable(guard, False)
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        print(f"cannot start {sys.argv[2]}: {error.strerror}", flush=True)
        os._exit(127)


if __name__ == "__main__":
    main()
