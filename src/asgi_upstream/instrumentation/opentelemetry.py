"""Records OpenTelemetry metrics, and adds each exchange to the trace of the caller's request.

Names follow https://opentelemetry.io/docs/specs/semconv/http/http-metrics/#http-client. The spans
of requests to the upstream and the `traceparent` header come from OpenTelemetry's httpx
instrumentation.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from urllib.parse import urlsplit

try:
    from opentelemetry import metrics, trace
except ImportError as _exc:
    raise ImportError(
        "opentelemetry_observer needs opentelemetry-api: pip install opentelemetry-api",
        name=_exc.name,
    ) from _exc

from ..errors import describe_exception
from ..records import ExchangeRecord, Observer
from ._gauges import open_exchange_counts
from ._labels import MAX_HOSTS, OTHER, BoundedLabels, bounded_method

DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds in seconds. The conventions recommend them."""

_SPAN_NAME = "asgi_upstream.exchange"
_SPAN_FIELDS = tuple(
    field.name
    for field in fields(ExchangeRecord)
    if field.name not in ("method", "route", "outcome", "exception")
)


def opentelemetry_observer(
    *,
    meter_provider: metrics.MeterProvider | None = None,
    tracer_provider: trace.TracerProvider | None = None,
    body_sizes: bool = False,
    max_hosts: int = MAX_HOSTS,
) -> Observer:
    """Return an observer that records metrics and annotates traces. Use one for all clients.

        observe = opentelemetry_observer()
        client_lifespan(observers=[observe])

    If the app is instrumented, the span of the caller's request gets the data of the exchange as
    attributes and events. OpenTelemetry ends that span with the last chunk of the response. If it
    has ended, the data goes to a child span.

    Arguments:
        meter_provider: The meter provider. Default: the global one.
        tracer_provider: The tracer provider. Default: the global one.
        body_sizes: Whether to record body sizes. They are optional in the conventions.
        max_hosts: Maximum number of hosts in labels. Later hosts are recorded as "_OTHER".
            Default: 100.

    Returns:
        A function for `client_lifespan(observers=[...])`.

    Raises:
        ImportError: On import, if opentelemetry-api is not installed. The extra `otel`
            installs it.
    """
    meter = metrics.get_meter("asgi_upstream", meter_provider=meter_provider)
    tracer = trace.get_tracer("asgi_upstream", tracer_provider=tracer_provider)
    histograms = _Histograms(meter, max_hosts, body_sizes=body_sizes)
    _create_gauges(meter)

    def observe(record: ExchangeRecord) -> None:
        histograms.record(record)
        _add_to_trace(tracer, record)

    return observe


class _Histograms:
    """Records durations and body sizes."""

    def __init__(self, meter: metrics.Meter, max_hosts: int, *, body_sizes: bool) -> None:
        def seconds(name: str, text: str) -> metrics.Histogram:
            return meter.create_histogram(
                name, "s", text, explicit_bucket_boundaries_advisory=DURATION_BUCKETS
            )

        self._duration = seconds(
            "http.client.request.duration", "Duration of HTTP client requests."
        )
        self._first_byte = seconds(
            "asgi_upstream.time_to_first_byte", "Time to the first byte of the upstream's body."
        )
        self._sizes = [
            meter.create_histogram(
                f"http.client.{message}.body.size", "By", f"Size of HTTP client {message} bodies."
            )
            for message in ("request", "response")
            if body_sizes
        ]
        self._hosts = BoundedLabels(max_hosts)
        self._attributes: dict[object, Mapping[str, str | int]] = {}

    def record(self, record: ExchangeRecord) -> None:
        method, host = bounded_method(record.method), self._hosts[record.host]
        key = (record.client, host, method, record.route, record.status, record.outcome)
        attributes = self._attributes.get(key)
        if attributes is None:
            attributes = self._attributes[key] = _make_attributes(record, method, host)
        self._duration.record(record.duration, attributes)
        if record.time_to_first_byte is not None:
            self._first_byte.record(record.time_to_first_byte, attributes)
        if self._sizes:
            self._sizes[0].record(record.bytes_sent, attributes)
            self._sizes[1].record(record.bytes_received, attributes)


def _create_gauges(meter: metrics.Meter) -> None:
    meter.create_observable_up_down_counter(
        "asgi_upstream.open_exchanges", [_observe_open], "{exchange}", "Exchanges in progress."
    )
    meter.create_observable_up_down_counter(
        "asgi_upstream.waiting_exchanges",
        [_observe_waiting],
        "{exchange}",
        "Exchanges that wait for a connection. Only on AsyncioTransport.",
    )


def _add_to_trace(tracer: trace.Tracer, record: ExchangeRecord) -> None:
    """Annotate the span of the caller's request, or add a child span if it has ended."""
    span, now = trace.get_current_span(), time.time_ns()
    if span.is_recording():
        _annotate(span, record, now)
    elif span.get_span_context().is_valid:
        child = tracer.start_span(_SPAN_NAME, start_time=now - int(record.duration * 1e9))
        _annotate(child, record, now)
        if record.outcome.is_failure:
            child.set_status(trace.StatusCode.ERROR)
        child.end(now)


def _make_attributes(record: ExchangeRecord, method: str, host: str) -> Mapping[str, str | int]:
    """Return the attributes of the conventions for client metrics, and the library's own."""
    address = urlsplit(f"//{host}")  # not used for OTHER, which it would convert to lower case
    error: str | None = None
    if record.outcome.is_failure:
        error = record.outcome.value
    elif record.status is not None and record.status >= 400:
        error = str(record.status)
    attributes: dict[str, str | int | None] = {
        "http.request.method": method,
        "server.address": host if host == OTHER else address.hostname,
        "server.port": address.port,
        "http.response.status_code": record.status,
        "error.type": error,
        "http.route": record.route,
        "asgi_upstream.client": record.client,
        "asgi_upstream.outcome": record.outcome.value,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _annotate(span: trace.Span, record: ExchangeRecord, now: int) -> None:
    span.set_attribute("asgi_upstream.outcome", record.outcome.value)
    for name in _SPAN_FIELDS:
        if (value := getattr(record, name)) is not None:
            span.set_attribute(f"asgi_upstream.{name}", value)
    if record.exception is not None:
        span.set_attribute("asgi_upstream.error", describe_exception(record.exception))
    for event, seconds in (
        ("asgi_upstream.headers", record.time_to_headers),
        ("asgi_upstream.first_byte", record.time_to_first_byte),
    ):
        if seconds is not None:
            span.add_event(event, timestamp=now - int((record.duration - seconds) * 1e9))


def _observe_open(options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
    for name, count in open_exchange_counts().items():
        yield metrics.Observation(count.open, {"asgi_upstream.client": name})


def _observe_waiting(options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
    for name, count in open_exchange_counts().items():
        if count.waiting is not None:
            yield metrics.Observation(count.waiting, {"asgi_upstream.client": name})
