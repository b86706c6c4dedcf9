"""Stages of a request as spans.

Owns how a stage becomes a child of the current span. The tracer travels in the context of a request; without
one, which is the default, a span is nothing. Imports nothing of OpenTelemetry: searches run where there is
torch and little else, too. Where spans go is `server/tracing.py`'s.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

current_tracer: ContextVar["Tracer | None"] = ContextVar("tracer", default=None)
"""Of the request being served; None: nobody collects spans."""

_NOTHING: AbstractContextManager[None] = nullcontext()


def span(name: str, **attributes: Any) -> AbstractContextManager[None]:
    """Make a child of the current span; nothing where nobody collects spans.

    Args:
        name: Such as `recall`.
        attributes: With `__` for the dots of their names.
    """
    tracer = current_tracer.get()
    return _NOTHING if tracer is None else _made(tracer, name, attributes)


@contextmanager
def _made(tracer: "Tracer", name: str, attributes: Mapping[str, Any]) -> Iterator[None]:
    with tracer.start_as_current_span(
        name, attributes=dotted(attributes), record_exception=False, set_status_on_exception=False
    ) as made:
        try:
            yield
        except BaseException as error:
            made.set_attribute("error.type", type(error).__name__)
            raise


def dotted(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes by the names that they have in spans, those that are known."""
    return {name.replace("__", "."): value for name, value in attributes.items() if value is not None}
