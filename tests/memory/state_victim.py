"""Processes that write into a state and are killed, each at another point.

Run by tests/memory/test_state_crash.py: `state_victim.py write URL`, which acknowledges each writing on its
standard output, or `state_victim.py take-over FOLDER URL`.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from config.settings import Settings
from memory.night import NightLog
from memory.state import NewTrace, State


def latent(number: int) -> bytes:
    """Return what stands for the latent of trace `number`."""
    return number.to_bytes(4, "big") * (number * 37 % 3000)


def say(*words: object) -> None:
    """Write a line, all of it or nothing."""
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


def killed(work: Callable[[], object], after_s: float | None = None) -> bool:
    """Do `work` in a process of its own, kill it after a while unless it does so itself; say if it was."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def die_at(call: int) -> Callable[..., None]:
    """Return what kills this process when it is called so often."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def write(url: str, number: int, commit: int | None) -> None:
    """Note two outcomes, a trace and a night at a time, for ever or until just before that commit."""
    if commit is not None:
        event.listen(Engine, "commit", die_at(commit))
    state = State(url)
    log = NightLog(state)
    while True:
        state.add_outcomes("space", "default", "v1/0", [(f"{number}a", 0.5), (f"{number}b", -0.5)], "day")
        say("outcomes", number)
        state.write_traces([NewTrace(f"trace-{number}", {"number": number}, latent(number))], {}, 1_000_000)
        say("trace", number)
        night = log.create(f"space-{number}", "api")
        say("night", number, night.id)
        log.update(replace(night, state="refused", message=f"night {number}"))
        say("ended", number, night.id)
        number += 1


def take_over(settings: Settings, commit: int | None, deletion: int | None) -> None:
    """Open the state, until just before that commit or that deletion of a file."""
    if commit is not None:
        event.listen(Engine, "commit", die_at(commit))
    if deletion is not None:
        unlink, count = Path.unlink, die_at(deletion)

        def counted(path: Path, **options: Any) -> None:
            count()
            unlink(path, **options)

        Path.unlink = counted  # type: ignore[method-assign]
    State.open(settings)


def main() -> None:
    """Have one process after another killed."""
    if sys.argv[1] == "write":
        chance = random.Random(7)
        for round_number in range(16):
            first, at = 1000 * round_number, chance.uniform(0.05, 0.25)
            if round_number % 2:
                assert killed(lambda: write(sys.argv[2], first, None), at)  # noqa: B023
            else:
                assert killed(lambda: write(sys.argv[2], first, 1 + round_number // 2))  # noqa: B023
        return
    settings = Settings(data_dir=Path(sys.argv[2]), state_url=sys.argv[3], _env_file=None)
    for point in ((1, None), (2, None), (3, None), (None, 1), (None, 7), (4, None), (None, 60)):
        assert killed(lambda: take_over(settings, *point)), point  # noqa: B023
    assert not killed(lambda: take_over(settings, None, None))


if __name__ == "__main__":
    main()
