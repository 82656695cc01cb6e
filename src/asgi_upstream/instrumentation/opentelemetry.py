"""Metrics by OpenTelemetry's conventions, and what happened in the trace of the caller's request.

https://opentelemetry.io/docs/specs/semconv/http/http-metrics/#http-client. Spans of the requests
to the upstream, and their context in its headers, come from OpenTelemetry's httpx instrumentation.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from urllib.parse import urlsplit

try:
    from opentelemetry import metrics, trace
except ImportError as _exc:
    raise ImportError(
        "opentelemetry_observer needs opentelemetry-api: pip install 'asgi-upstream[otel]'",
        name=_exc.name,
    ) from _exc

from ..errors import describe_exception
from ..records import ExchangeRecord, Observer
from ._gauges import open_exchange_counts
from ._labels import MAX_HOSTS, OTHER, BoundedLabels, bounded_method

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The buckets that the conventions advise."""

_SPAN = "asgi_upstream.exchange"
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
    """An observer that records metrics, and tells the trace. Give the same one to every client.

        client_lifespan(observers=[opentelemetry_observer()])

    Where an instrumentation of the app made a span for the caller's request, that one is told while
    it is open. OpenTelemetry's own ends it with the last part of the body, so what happened to an
    exchange that came so far is in a span of its own under it.

    Arguments:
        meter_provider, tracer_provider: instead of the global ones.
        body_sizes: also record the sizes of bodies, which is optional in the conventions.
        max_hosts: so many hosts are told apart, and those after them are "_OTHER".

    Raises:
        ImportError: on import, without opentelemetry-api: `asgi-upstream[otel]` brings it.
    """
    meter = metrics.get_meter("asgi_upstream", meter_provider=meter_provider)
    tracer = trace.get_tracer("asgi_upstream", tracer_provider=tracer_provider)

    def duration_histogram(name: str, text: str) -> metrics.Histogram:
        return meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=SECONDS)

    duration = duration_histogram(
        "http.client.request.duration", "Duration of HTTP client requests."
    )
    first_byte = duration_histogram(
        "asgi_upstream.time_to_first_byte", "Until the upstream's body had its first byte."
    )
    sizes = [
        meter.create_histogram(
            f"http.client.{message}.body.size", "By", f"Size of HTTP client {message} bodies."
        )
        for message in ("request", "response")
        if body_sizes
    ]
    meter.create_observable_up_down_counter(
        "asgi_upstream.open_exchanges", [_open], "{exchange}", "Exchanges under way."
    )
    meter.create_observable_up_down_counter(
        "asgi_upstream.waiting_exchanges",
        [_waiting],
        "{exchange}",
        "Exchanges under way that wait for a connection; on AsyncioTransport.",
    )
    hosts = BoundedLabels(max_hosts)
    by_labels: dict[object, Mapping[str, str | int]] = {}

    def observe(record: ExchangeRecord) -> None:
        method, host = bounded_method(record.method), hosts[record.host]
        key = (record.client, host, method, record.route, record.status, record.outcome)
        attributes = by_labels.get(key)
        if attributes is None:
            attributes = by_labels[key] = _attributes(record, method, host)
        duration.record(record.duration, attributes)
        if record.time_to_first_byte is not None:
            first_byte.record(record.time_to_first_byte, attributes)
        if sizes:
            sizes[0].record(record.bytes_sent, attributes)
            sizes[1].record(record.bytes_received, attributes)
        span = trace.get_current_span()
        if span.is_recording():
            _annotate(span, record, time.time_ns())
        elif span.get_span_context().is_valid:
            now = time.time_ns()
            exchange_span = tracer.start_span(_SPAN, start_time=now - int(record.duration * 1e9))
            _annotate(exchange_span, record, now)
            if record.outcome.is_failure:
                exchange_span.set_status(trace.StatusCode.ERROR)
            exchange_span.end(now)

    return observe


def _attributes(record: ExchangeRecord, method: str, host: str) -> Mapping[str, str | int]:
    """Those of the conventions for a client's metrics, and what only this library knows."""
    address = urlsplit(f"//{host}")  # which would write OTHER in lower case
    error: str | None = None
    if record.outcome.is_failure:
        error = record.outcome.value
    elif record.status is not None and record.status >= 400:
        error = str(record.status)
    all_of: dict[str, str | int | None] = {
        "http.request.method": method,
        "server.address": host if host == OTHER else address.hostname,
        "server.port": address.port,
        "http.response.status_code": record.status,
        "error.type": error,
        "http.route": record.route,
        "asgi_upstream.client": record.client,
        "asgi_upstream.outcome": record.outcome.value,
    }
    return {name: value for name, value in all_of.items() if value is not None}


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


def _open(options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
    for name, now in open_exchange_counts().items():
        yield metrics.Observation(now.open, {"asgi_upstream.client": name})


def _waiting(options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
    for name, now in open_exchange_counts().items():
        if now.waiting is not None:
            yield metrics.Observation(now.waiting, {"asgi_upstream.client": name})
