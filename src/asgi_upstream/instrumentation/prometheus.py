"""Metrics for Prometheus: what happened to exchanges, and how many are under way."""

from collections.abc import Iterable, Sequence

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client.core import GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as _exc:
    if _exc.name != "prometheus_client":
        raise
    raise ImportError(
        "prometheus_observer needs prometheus-client: pip install 'asgi-upstream[prometheus]'",
        name=_exc.name,
    ) from _exc

from ..records import ExchangeRecord, Observer
from ._gauges import open_exchange_counts
from ._labels import MAX_HOSTS, BoundedLabels, bounded_method

DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""The upper ends of the histograms' buckets: a stream may last for minutes."""

_REQUEST = ("client", "host", "method", "route")
_Metrics = tuple[Counter, Histogram, Histogram, Histogram]


def prometheus_observer(
    registry: CollectorRegistry = REGISTRY,
    *,
    buckets: Sequence[float] = DEFAULT_BUCKETS,
    max_hosts: int = MAX_HOSTS,
) -> Observer:
    """An observer that counts and times exchanges. Give the same one to every client.

        client_lifespan(observers=[prometheus_observer()])

    With it come gauges of what is open and waiting, read at each scrape from all the clients of
    the process that have a name.

    Arguments:
        registry: where the metrics are; once in each.
        buckets: of the histograms, in seconds.
        max_hosts: so many hosts are told apart, and those after them are "_OTHER".

    Raises:
        ImportError: on import, without prometheus-client: `asgi-upstream[prometheus]` brings it.
        ValueError: at once, where the registry has these metrics already.
    """

    def histogram(name: str, text: str) -> Histogram:
        return Histogram(
            f"asgi_upstream_{name}", text, _REQUEST, registry=registry, buckets=buckets
        )

    exchanges_total = Counter(
        "asgi_upstream_exchanges",
        "Exchanges that ended, by how they did and by the upstream's status.",
        (*_REQUEST, "status", "outcome"),
        registry=registry,
    )
    to_headers = histogram("time_to_headers_seconds", "Until the upstream's headers were there.")
    to_first_byte = histogram(
        "time_to_first_byte_seconds", "Until the first byte of the upstream's body was there."
    )
    duration = histogram("exchange_duration_seconds", "From an exchange's beginning to its end.")
    registry.register(_OpenExchangesCollector())
    hosts = BoundedLabels(max_hosts)
    by_labels: dict[object, _Metrics] = {}  # finding them by `labels()` costs more than all else

    def observe(record: ExchangeRecord) -> None:
        method, host = bounded_method(record.method), hosts[record.host]
        key = (record.client, host, method, record.route, record.status, record.outcome)
        metrics = by_labels.get(key)
        if metrics is None:
            request = (record.client or "", host, method, record.route or "")
            metrics = by_labels[key] = (
                exchanges_total.labels(*request, record.status or "", record.outcome),
                to_headers.labels(*request),
                to_first_byte.labels(*request),
                duration.labels(*request),
            )
        count, headers, first_byte, whole = metrics
        count.inc()
        if record.time_to_headers is not None:
            headers.observe(record.time_to_headers)
        if record.time_to_first_byte is not None:
            first_byte.observe(record.time_to_first_byte)
        whole.observe(record.duration)

    return observe


class _OpenExchangesCollector(Collector):
    """Gauges that are read when they are scraped, so that they cost nothing between."""

    def collect(self) -> Iterable[Metric]:
        open_ = GaugeMetricFamily(
            "asgi_upstream_open_exchanges", "Exchanges under way.", labels=["client"]
        )
        waiting = GaugeMetricFamily(
            "asgi_upstream_waiting_exchanges",
            "Exchanges under way that wait for a connection; on AsyncioTransport.",
            labels=["client"],
        )
        for name, now in open_exchange_counts().items():
            open_.add_metric([name], now.open)
            if now.waiting is not None:
                waiting.add_metric([name], now.waiting)
        return open_, waiting
