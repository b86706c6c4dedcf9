"""Spans of requests: their tree, what they say, and what they do not."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from config.settings import Settings
from server.spans import span
from server.tracing import EVALUATION, current, headers_of, traces_endpoint
from tests.server.api.conftest import Parts, Serve, Served
from tests.server.api.inner import MODEL

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Traced:
    """A gateway and the spans that it made."""

    def __init__(self, served: Served, exporter: InMemorySpanExporter) -> None:
        self.served, self._exporter = served, exporter

    @property
    def spans(self) -> list[ReadableSpan]:
        assert self.served.gateway.tracing.flush()
        return list(self._exporter.get_finished_spans())

    def forget(self) -> None:
        assert self.served.gateway.tracing.flush()
        self._exporter.clear()

    def tree(self) -> dict[str, list[str]]:
        """Return the names of the children of each span, by its name."""
        spans = self.spans
        names = {one.context.span_id: one.name for one in spans if one.context}
        found: dict[str, list[str]] = {}
        for one in sorted(spans, key=lambda one: one.start_time or 0):
            if one.parent is not None and one.parent.span_id in names:
                found.setdefault(names[one.parent.span_id], []).append(one.name)
        return found

    def request(self) -> ReadableSpan:
        (found,) = [one for one in self.spans if one.name.startswith("chat ")]
        return found


@pytest.fixture
async def traced(serve: Serve) -> Traced:
    exporter = InMemorySpanExporter()
    return Traced(await serve(Parts(spans=exporter)), exporter)


async def test_a_search_is_a_tree_of_its_stages_and_steps(traced: Traced) -> None:
    await traced.served.chat("sum two and two", latent={"effort": "high"})
    await traced.served.gateway.remember.drain()
    traced.forget()
    await traced.served.chat("sum three and four", latent={"effort": "high", "steps": 2})
    tree = traced.tree()
    assert tree[f"chat {MODEL}"] == ["key", "recall", "transfer", "search"]
    assert tree["search"][0] == "votes"
    assert set(tree["search"][1:]) == {"step"}
    (search,) = [one for one in traced.spans if one.name == "search"]
    assert search.attributes is not None
    assert search.attributes["latentevolve.search"] == "evolution"
    steps = [
        one.attributes["latentevolve.step"] for one in traced.spans if one.name == "step" and one.attributes
    ]
    assert steps == list(range(1, len(steps) + 1))


async def test_a_request_says_what_its_headers_do(traced: Traced) -> None:
    answer = await traced.served.chat(
        "sum two and two", temperature=0.5, max_tokens=16, seed=True, latent={"effort": "high"}
    )
    told = traced.request()
    assert told.attributes is not None
    said = dict(told.attributes)
    assert (said["gen_ai.operation.name"], said["gen_ai.request.model"]) == ("chat", MODEL)
    assert (said["gen_ai.request.temperature"], said["gen_ai.request.max_tokens"]) == (0.5, 16)
    assert "gen_ai.request.seed" not in said, "it is no number"
    assert said["http.response.status_code"] == 200
    for name in ("mode", "reason", "effort", "prior"):
        assert said[f"latentevolve.{name}"] == answer.headers[f"x-latent-{name}"]
    assert said["latentevolve.trace_id"] == answer.headers["x-latent-trace"]
    (event,) = told.events
    assert event.name == EVALUATION
    assert event.attributes is not None
    assert event.attributes["gen_ai.evaluation.name"] == "reward"
    assert (
        f"{event.attributes['gen_ai.evaluation.score.value']:.4f}" == answer.headers["x-latent-reward-after"]
    )


async def test_the_clients_trace_goes_on(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "sum two and two"}]}
    await traced.served.http.post("/v1/chat/completions", json=body, headers=headers)
    told = traced.request()
    assert told.context is not None
    assert told.parent is not None
    assert (f"{told.context.trace_id:032x}", f"{told.parent.span_id:016x}") == (TRACE, PARENT)
    assert told.context.trace_state.get("vendor") == "1"


async def test_no_span_holds_what_people_write(traced: Traced) -> None:
    secret = "Rumpelstilzchen"
    await traced.served.chat(f"sum {secret}", latent={"effort": "high"}, user=secret, temperature=secret)
    await traced.served.chat(f"sum {secret}", latent={"search": secret})
    await traced.served.chat(f"sum {secret}", **{"break": "before"})
    traced.served.engine.alive = False
    await traced.served.chat(f"sum {secret}", latent={"effort": "high"})
    assert len(traced.spans) > 3
    for one in traced.spans:
        assert secret not in one.to_json()


async def test_an_error_of_the_server_is_one_on_its_span(traced: Traced) -> None:
    await traced.served.chat(**{"break": "before"})
    told = traced.request()
    assert told.status.status_code is StatusCode.ERROR
    assert told.status.description is None
    assert told.attributes is not None
    assert told.attributes["error.type"] == "RuntimeError"
    traced.forget()
    await traced.served.chat(model="another")
    refused = traced.request()
    assert refused.status.status_code is StatusCode.UNSET
    assert refused.attributes is not None
    assert refused.attributes["http.response.status_code"] == 404


async def test_exploring_belongs_to_the_request_that_it_is_of(serve: Serve) -> None:
    exporter = InMemorySpanExporter()
    traced = Traced(await serve(Parts(spans=exporter), explore_share=1.0, rewards="consistency=1"), exporter)
    answer = await traced.served.chat("sum two and two", temperature=1.0)
    await traced.served.gateway.steering.explorer.drain()
    tree = traced.tree()
    assert "explore" in tree[f"chat {MODEL}"]
    assert "votes" in tree["explore"]
    (explored,) = [one for one in traced.spans if one.name == "explore"]
    assert explored.attributes is not None
    assert explored.attributes["latentevolve.trace_id"] == answer.headers["x-latent-trace"]


async def test_feedback_is_an_evaluation_of_its_answer(traced: Traced) -> None:
    answer = (await traced.served.chat("sum two and two", latent={"effort": "high"})).json()
    traced.forget()
    said = {"inference_id": answer["id"], "metric_name": "rating", "value": 0.5}
    assert (await traced.served.http.post("/v1/feedback", json=said)).status_code == 200
    (told,) = [one for one in traced.spans if one.name == "feedback"]
    assert told.attributes is not None
    assert told.attributes["gen_ai.response.id"] == answer["id"]
    (event,) = told.events
    assert event.attributes is not None
    assert event.attributes["gen_ai.evaluation.name"] == "rating"
    assert event.attributes["gen_ai.evaluation.score.value"] == 0.5


async def test_without_a_collector_there_is_no_span(served: Served) -> None:
    assert not served.gateway.tracing.on
    with served.gateway.tracing.request("chat", {}, {}), span("key"):
        assert not current().is_recording()
        assert headers_of() is None


@pytest.mark.parametrize(
    ("settings", "endpoint"),
    [
        ({}, None),
        ({"otlp_endpoint": "http://a:4318"}, "http://a:4318/v1/traces"),
        ({"otlp_endpoint": "http://a:4318/otlp/"}, "http://a:4318/otlp/v1/traces"),
        ({"vllm_args": "--otlp-traces-endpoint http://b/spans"}, "http://b/spans"),
        (
            {"vllm_args": "--otlp_traces_endpoint=http://b/spans", "otlp_endpoint": "http://a"},
            "http://b/spans",
        ),
        ({"vllm_args": "--otlp-traces-endpoint"}, None),
        ({"vllm_args": "'left open"}, None),
    ],
)
def test_spans_go_where_the_setting_or_vllms_own_option_says(
    settings: dict[str, str], endpoint: str | None
) -> None:
    assert traces_endpoint(Settings(_env_file=None, **settings)) == endpoint  # type: ignore[arg-type]


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Yield the URL of a receiver of OTLP over HTTP, and what it got."""
    received: list[ExportTraceServiceRequest] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_collector_that_is_named_gets_the_spans(serve: Serve) -> None:
    with collector() as (url, received):
        served = await serve(otlp_endpoint=url)
        await served.chat("sum two and two", latent={"effort": "high"})
        assert served.gateway.tracing.flush()
        resources = [one.resource for message in received for one in message.resource_spans]
        named = {each.key: each.value.string_value for one in resources for each in one.attributes}
        assert named["service.name"] == "latentevolve"
        names = [
            each.name
            for message in received
            for one in message.resource_spans
            for scope in one.scope_spans
            for each in scope.spans
        ]
        assert {f"chat {MODEL}", "key", "search", "votes", "step"} <= set(names)


async def test_a_collector_that_is_away_fails_no_request(serve: Serve) -> None:
    with collector() as (url, _):
        pass
    served = await serve(otlp_endpoint=url)
    assert (await served.chat("sum two and two")).status_code == 200
