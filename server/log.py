"""How the gateway logs: one line per record, with the request and the prior it was served by.

Owns the format. Knows nothing of what is logged; vLLM keeps its own loggers.
"""

import logging
import sys
from contextvars import ContextVar

from server.steering.request import current_call

current_request_id: ContextVar[str] = ContextVar("current_request_id", default="-")
"""Id of the HTTP request being served; `-` outside of requests."""

_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


class _Context(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        call = current_call.get()
        outcome = call.outcome if call is not None else None
        record.request_id = current_request_id.get()
        record.prior = (outcome.prior_version if outcome is not None else None) or "-"
        return True


class _NoProbes(logging.Filter):
    """Probes come every second and say nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        path = record.args[2] if isinstance(record.args, tuple) and len(record.args) > 2 else None
        return path not in _PROBES


class _OneLine(logging.Formatter):
    """A traceback in the middle of a log breaks line-wise collectors, so its newlines are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\r", "").replace("\n", "\\n")


def configure_logging(level: str) -> None:
    """Send every record of this process, vLLM's own excepted, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Context())
    handler.setFormatter(
        _OneLine("%(asctime)s %(levelname)s %(name)s [request=%(request_id)s prior=%(prior)s] %(message)s")
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # On each package, for a library that vLLM imports sets the root logger's level to its own.
    for name in ("config", "memory", "model", "server", "uvicorn"):
        logging.getLogger(name).setLevel(level)
    if level != "DEBUG":
        logging.getLogger("uvicorn.access").addFilter(_NoProbes())
    for noisy in ("httpx", "httpcore", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
