"""Metrics by the conventions' names in a real SDK, and what the current span is told."""

import re
import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.metrics import http_metrics as incubating
from opentelemetry.semconv.attributes import (
    error_attributes,
    http_attributes,
    server_attributes,
)
from opentelemetry.semconv.metrics import http_metrics
from opentelemetry.trace import StatusCode

from asgi_upstream.instrumentation.opentelemetry import DURATION_BUCKETS, opentelemetry_observer
from asgi_upstream.records import ExchangeRecord, Observer, Outcome
from tests.support.flavor import httpx
from tests.support.opentelemetry import Metrics
from tests.support.records import Busy, failure, open_clients_are, record

OURS = re.compile(r"asgi_upstream\.\w+")
CONVENTIONAL = {
    value
    for module in (http_metrics, incubating, http_attributes, server_attributes, error_attributes)
    for value in vars(module).values()
    if isinstance(value, str)
}


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    yield metrics
    metrics.provider.shutdown()


class Traces:
    """What the observer tells under the span of a caller's request."""

    def __init__(self, metrics: Metrics) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.observe = opentelemetry_observer(
            meter_provider=metrics.provider, tracer_provider=self.provider
        )

    def told(self, record: ExchangeRecord, *, ended: bool = False) -> tuple[ReadableSpan, ...]:
        """The spans that there are when it was told, while that span was open or thereafter."""
        with self.provider.get_tracer("server").start_as_current_span("GET") as span:
            if ended:
                span.end()
            self.observe(record)
        return self.exporter.get_finished_spans()


@pytest.fixture
def traces(metrics: Metrics) -> Iterator[Traces]:
    traces = Traces(metrics)
    yield traces
    traces.provider.shutdown()


def observed(observe: Observer, *records: ExchangeRecord) -> None:
    for one in records:
        observe(one)


def test_the_duration_is_measured_as_the_conventions_say(metrics: Metrics) -> None:
    observed(
        opentelemetry_observer(meter_provider=metrics.provider), record(), record(duration=0.5)
    )
    metric = metrics.all()[http_metrics.HTTP_CLIENT_REQUEST_DURATION]
    assert metric.unit == "s"
    (point,) = metrics.points(metric.name)
    assert (point.count, point.sum) == (2, 2.5)
    assert point.explicit_bounds == DURATION_BUCKETS
    assert point.attributes == {
        "http.request.method": "GET",
        "server.address": "api.example",
        "server.port": 8443,
        "http.response.status_code": 200,
        "http.route": "/items/{id}",
        "asgi_upstream.client": "client",
        "asgi_upstream.outcome": "completed",
    }


def test_the_buckets_are_those_that_opentelemetry_itself_uses() -> None:
    from opentelemetry.instrumentation import _semconv

    if not hasattr(_semconv, "HTTP_DURATION_HISTOGRAM_BUCKETS_NEW"):
        pytest.skip("the lowest version that is supported does not name them")
    assert DURATION_BUCKETS == _semconv.HTTP_DURATION_HISTOGRAM_BUCKETS_NEW


def test_every_name_is_semantic_convention_or_has_our_prefix(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_clients_are(monkeypatch, ("client", Busy(open=1, waiting=1)))
    observed(
        opentelemetry_observer(meter_provider=metrics.provider, body_sizes=True),
        record(),
        failure(),
    )
    assert len(metrics.all()) == 6
    for name, metric in metrics.all().items():
        attributes = {key for point in metric.data.data_points for key in point.attributes or {}}
        for one in (name, *attributes):
            assert one in CONVENTIONAL or OURS.fullmatch(one), one


@pytest.mark.parametrize(
    ("one", "error"),
    [
        (record(), None),
        (record(status=302), None),
        (record(status=404), "404"),
        (record(status=503), "503"),
        (record(outcome=Outcome.CALLER_DISCONNECTED_MID_BODY), None),
        (failure(Outcome.CONNECT_TIMEOUT), "connect_timeout"),
        (record(outcome=Outcome.BODY_FAILED), "body_failed"),
    ],
)
def test_failures_have_an_error_type(
    metrics: Metrics, one: ExchangeRecord, error: str | None
) -> None:
    opentelemetry_observer(meter_provider=metrics.provider)(one)
    (point,) = metrics.points("http.client.request.duration")
    assert point.attributes.get("error.type") == error


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("api.example", "api.example", None),
        ("127.0.0.1:9000", "127.0.0.1", 9000),
        ("[::1]", "::1", None),
        ("[::1]:9000", "::1", 9000),
    ],
)
def test_a_host_is_told_as_address_and_port(
    metrics: Metrics, host: str, address: str, port: int | None
) -> None:
    opentelemetry_observer(meter_provider=metrics.provider)(record(host=host))
    (point,) = metrics.points("http.client.request.duration")
    assert point.attributes["server.address"] == address
    assert point.attributes.get("server.port") == port


def test_attributes_stay_few_whatever_callers_send(metrics: Metrics) -> None:
    observe = opentelemetry_observer(meter_provider=metrics.provider, max_hosts=2)
    for number in range(50):
        observe(record(method=f"BREW{number}", host=f"host{number}.example"))
    points = metrics.points("http.client.request.duration")
    assert {point.attributes["http.request.method"] for point in points} == {"_OTHER"}
    addresses = sorted(point.attributes["server.address"] for point in points)
    assert addresses == ["_OTHER", "host0.example", "host1.example"]


def test_time_to_first_byte_is_measured_if_there_was_one(metrics: Metrics) -> None:
    observed(opentelemetry_observer(meter_provider=metrics.provider), record(), failure())
    (point,) = metrics.points("asgi_upstream.time_to_first_byte")
    assert (point.count, point.sum) == (1, 0.2)


def test_body_sizes_are_measured_where_asked_for(metrics: Metrics) -> None:
    opentelemetry_observer(meter_provider=metrics.provider)(record())
    assert not any("body" in name for name in metrics.all())
    other = Metrics()
    opentelemetry_observer(meter_provider=other.provider, body_sizes=True)(record())
    (sent,) = other.points(incubating.HTTP_CLIENT_REQUEST_BODY_SIZE)
    (received,) = other.points(incubating.HTTP_CLIENT_RESPONSE_BODY_SIZE)
    assert (sent.sum, received.sum) == (7, 1024)
    other.provider.shutdown()


def test_what_is_open_and_waiting_is_read_when_it_is_collected(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    busy = Busy(open=3, waiting=2)
    open_clients_are(monkeypatch, ("client", busy), ("billing", Busy(open=1)))
    opentelemetry_observer(meter_provider=metrics.provider)

    def values(name: str) -> dict[str, int]:
        points = metrics.points(f"asgi_upstream.{name}")
        return {point.attributes["asgi_upstream.client"]: point.value for point in points}

    assert values("open_exchanges") == {"client": 3, "billing": 1}
    assert values("waiting_exchanges") == {"client": 2}
    busy.open_count = 0
    assert values("open_exchanges") == {"client": 0, "billing": 1}
    assert caplog.text == ""


ATTRIBUTES = {
    "asgi_upstream.outcome": "completed",
    "asgi_upstream.client": "client",
    "asgi_upstream.host": "api.example:8443",
    "asgi_upstream.status": 200,
    "asgi_upstream.duration": 2.0,
    "asgi_upstream.time_to_headers": 0.02,
    "asgi_upstream.time_to_first_byte": 0.2,
    "asgi_upstream.bytes_sent": 7,
    "asgi_upstream.bytes_received": 1024,
    "asgi_upstream.connection_reused": True,
}


def test_open_span_of_the_callers_request_gets_attributes(traces: Traces) -> None:
    (span,) = traces.told(record())
    assert span.name == "GET"
    assert span.attributes == ATTRIBUTES


def test_where_it_has_ended_a_span_under_it_tells_the_same(traces: Traces) -> None:
    server, own = traces.told(record(), ended=True)
    assert not server.attributes
    assert own.name == "asgi_upstream.exchange"
    assert own.parent == server.context
    assert own.attributes == ATTRIBUTES
    assert own.status.is_unset
    assert own.start_time is not None
    assert own.end_time == own.start_time + 2_000_000_000


def test_such_a_span_of_a_failure_is_an_error(traces: Traces) -> None:
    _, own = traces.told(record(outcome=Outcome.BODY_FAILED), ended=True)
    assert own.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("ended", [False, True])
def test_events_are_at_the_times_at_which_they_were(traces: Traces, ended: bool) -> None:
    before = time.time_ns()
    span = traces.told(record(), ended=ended)[-1]
    after = time.time_ns()
    headers, first_byte = span.events
    assert (headers.name, first_byte.name) == ("asgi_upstream.headers", "asgi_upstream.first_byte")
    assert before <= headers.timestamp + 1_980_000_000 <= after
    assert first_byte.timestamp - headers.timestamp == pytest.approx(180_000_000, abs=2)


def test_span_of_a_failure_has_the_error_and_no_events(traces: Traces) -> None:
    (span,) = traces.told(failure(exception=httpx.ConnectError("refused")))
    attributes = span.attributes or {}
    assert attributes["asgi_upstream.outcome"] == "connect_failed"
    assert attributes["asgi_upstream.error"] == "ConnectError: refused"
    assert "asgi_upstream.status" not in attributes
    assert span.events == ()


def test_a_caller_without_a_trace_gets_none_of_an_exchange(traces: Traces) -> None:
    traces.observe(record())
    assert traces.exporter.get_finished_spans() == ()


def test_metrics_are_recorded_without_a_span(metrics: Metrics) -> None:
    opentelemetry_observer(meter_provider=metrics.provider)(record())
    assert len(metrics.points("http.client.request.duration")) == 1


def test_without_an_sdk_it_does_nothing() -> None:
    observed(opentelemetry_observer(), record(), failure())
