"""How a command fails.

Owns what a command over several names does where one is not there, and the exception that `cli/main.py` turns
into a message and an exit code:
0 ok, 1 failed, 2 wrong usage, 3 worse than what is served (only `night`), 130 interrupted.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

FAILED = 1
USAGE = 2
REFUSED = 3
INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot go on; says why and what to do next.

    CommandError
    ├── GatewayError        the gateway answered with an error status (cli/gateway.py)
    │   └── MissingError    it has nothing of that name
    └── NotThereError       what was named is not there, wherever it was looked for; MissingError, too
    """

    def __init__(self, message: str, hint: str | None = None, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class NotThereError(CommandError):
    """What was named is not there."""


def each(names: Iterable[str], work: Callable[[str], T]) -> tuple[list[T], CommandError | None]:
    """Return what came of each of the names that are there, and the error about those that are not."""
    done: list[T] = []
    missing: list[NotThereError] = []
    for name in names:
        try:
            done.append(work(name))
        except NotThereError as error:
            missing.append(error)
    if not missing:
        return done, None
    return done, CommandError("; ".join(error.message for error in missing), missing[0].hint)
