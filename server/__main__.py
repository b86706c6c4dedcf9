"""`python -m server`: the gateway as a process.

Owns the entry point, signals and the exit status. SIGINT and SIGTERM let requests in flight finish for
a while, write what is to be remembered, and end vLLM.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator

import uvicorn
from sse_starlette.sse import AppStatus

from config.settings import Settings, unknown_variables
from server.app import create_app
from server.log import configure_logging

logger = logging.getLogger(__name__)

FINISH_S = 20
"""How long requests in flight may go on after a signal."""


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: it would raise the signal again once all is closed, and
    the exit status would tell of a death instead of an orderly end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self._end, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _end(self, number: int) -> None:
        if not self.should_exit:
            logger.info("%s: finishing requests in flight", signal.Signals(number).name)
        self.should_exit = True
        AppStatus.should_exit = True  # streams of events end; of themselves they would hold up the end


def main() -> int:
    """Serve until told to end; 1 when the gateway could not start or its engine died."""
    settings = Settings()
    configure_logging(settings.log_level)
    for sentence in unknown_variables():
        logger.warning("%s", sentence)
    failed = False

    def fail() -> None:
        nonlocal failed
        # A start that a signal cut short is no failure; each request that the engine fails tells of it again.
        failed = failed or not server.should_exit
        server.should_exit = True

    server = _Server(
        uvicorn.Config(
            create_app(settings, stop=fail),
            host=settings.host,
            port=settings.port,
            log_config=None,
            timeout_graceful_shutdown=FINISH_S,
            timeout_keep_alive=75,
        )
    )
    logger.info("listening on http://%s:%d, loading %s", settings.host, settings.port, settings.model)
    server.run()
    return 1 if failed or not server.started else 0


if __name__ == "__main__":
    sys.exit(main())
