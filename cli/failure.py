"""How a command fails.

Owns the one exception that `cli/main.py` turns into a message and an exit code:
0 ok, 1 failed, 2 wrong usage, 3 worse than what is served (only `night`), 130 interrupted.
"""

FAILED = 1
USAGE = 2
REFUSED = 3
INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot go on; says why and what to do next.

    CommandError
    └── GatewayError   the gateway answered with an error status (cli/gateway.py)
    """

    def __init__(self, message: str, hint: str | None = None, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
