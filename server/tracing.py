"""Spans of requests by OpenTelemetry, for whoever collects them by OTLP over HTTP.

Owns where spans go and what a request's span says of it by the conventions for generative models; how stages
become its children is `server/spans.py`'s. Spans hold no text of prompts or answers, also not in errors.
Knows nothing of vLLM: its own spans become children by headers that the engine is given.
"""

import argparse
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from config.settings import Settings
from server.spans import current_tracer, dotted
from server.vllm_args import split

logger = logging.getLogger(__name__)

EVALUATION = "gen_ai.evaluation.result"
"""Event: what something turned out to be worth."""

LAST_S = 2.0
"""How long a collector that does not answer holds up the end."""

_W3C = TraceContextTextMapPropagator()
_NUMBERS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
}
"""Fields of a request's body that are told, where they are numbers."""


class Tracing:
    """Makes spans and sends them on, in a thread of its own.

    Args:
        exporter: Takes spans; None: there are none.
    """

    def __init__(self, exporter: SpanExporter | None) -> None:
        self._exporter = exporter
        self._provider: TracerProvider | None = None
        self._its: Tracer | None = None
        if exporter is not None:
            self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
            self._its = self._provider.get_tracer("latentevolve")

    @classmethod
    def of(cls, settings: Settings) -> "Tracing":
        """Return what the settings ask for."""
        endpoint = traces_endpoint(settings)
        if endpoint is None:
            return cls(None)
        logger.info("spans go to %s", endpoint)
        return cls(OTLPSpanExporter(endpoint=endpoint))

    @property
    def on(self) -> bool:
        """Whether anybody takes spans."""
        return self._its is not None

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Iterator[Span]:
        """Make the span of a request, which goes on with the client's trace (W3C `traceparent`).

        Args:
            name: Of the span.
            headers: Of the request, with names in lower case.
            attributes: Of the span.
        """
        if self._its is None:
            yield INVALID_SPAN
            return
        parent = _W3C.extract(
            {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        )
        token = current_tracer.set(self._its)
        try:
            with self._its.start_as_current_span(
                name,
                context=parent,
                kind=SpanKind.SERVER,
                attributes=attributes,
                record_exception=False,
                set_status_on_exception=False,
            ) as made:
                try:
                    yield made
                except Exception as error:
                    failed(made, type(error).__name__)
                    raise
        finally:
            current_tracer.reset(token)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Send what waits; blocks. False when that took too long."""
        return self._provider is None or self._provider.force_flush(int(timeout_s * 1000))

    def close(self) -> None:
        """Send what waits, for at most `LAST_S`, and stop; blocks."""
        if self._provider is None or self._exporter is None:
            return
        giving_up = threading.Timer(LAST_S, self._exporter.shutdown)  # ends its waiting between tries
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()


def traces_endpoint(settings: Settings) -> str | None:
    """Return the URL that spans are posted to: what vLLM's own option names, else by the setting."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--otlp-traces-endpoint", "--otlp_traces_endpoint")
    try:
        file, others = split(settings.vllm_args)
        named, _ = parser.parse_known_args([*file, *others])
    except (ValueError, argparse.ArgumentError):
        named = argparse.Namespace(otlp_traces_endpoint=None)  # vLLM says what is wrong with them
    if named.otlp_traces_endpoint:
        return str(named.otlp_traces_endpoint)
    return f"{settings.otlp_endpoint.rstrip('/')}/v1/traces" if settings.otlp_endpoint else None


def described(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request's body says of it that is no text of anybody's."""
    found: dict[str, Any] = {}
    if body.get("stream") is True:
        found["gen_ai.request.stream"] = True
    for name, attribute in _NUMBERS.items():
        value = body.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[attribute] = value
    return found


def begin(name: str) -> Span:
    """Return a child of the current span that its holder ends, for what is not left as it was entered."""
    tracer = current_tracer.get()
    return INVALID_SPAN if tracer is None else tracer.start_span(name)


def current() -> Span:
    """Return the span of what is being done."""
    return trace.get_current_span()


def evaluated(name: str, value: float, **attributes: Any) -> None:
    """Add to the current span what something turned out to be worth."""
    current().add_event(
        EVALUATION,
        {"gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": value, **dotted(attributes)},
    )


def used(told: Span, prompt_tokens: int, answer_tokens: int) -> None:
    """Say on a span how many tokens were read and written."""
    told.set_attributes(
        {"gen_ai.usage.input_tokens": prompt_tokens, "gen_ai.usage.output_tokens": answer_tokens}
    )


def failed(told: Span, error_type: str) -> None:
    """Let a span end as an error of this type, without its message."""
    told.set_status(StatusCode.ERROR)
    told.set_attribute("error.type", error_type)


def headers_of(parent: Span | None = None) -> dict[str, str] | None:
    """Return the headers by which another process makes children of a span, the current one unless named.

    None where nobody collects spans.
    """
    if current_tracer.get() is None:
        return None
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, None if parent is None else trace.set_span_in_context(parent))
    return carrier or None


def _resource() -> Resource:
    """Return who sends spans; OpenTelemetry's own variables may name it otherwise, and say more."""
    found = Resource.create()
    own = {}
    if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        own[SERVICE_NAME] = "latentevolve"
    with suppress(PackageNotFoundError):
        own[SERVICE_VERSION] = version("latentevolve")
    return found.merge(Resource(own))
