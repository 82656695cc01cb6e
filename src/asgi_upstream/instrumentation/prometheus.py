"""Prometheus metrics: ended exchanges, and exchanges in progress."""

from collections.abc import Iterable, Sequence

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client.core import GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as _exc:
    if _exc.name != "prometheus_client":
        raise
    raise ImportError(
        "prometheus_observer needs prometheus-client: pip install prometheus-client",
        name=_exc.name,
    ) from _exc

from ..records import ExchangeRecord, Observer
from ._gauges import open_exchange_counts
from ._labels import MAX_HOSTS, BoundedLabels, bounded_method

DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds in seconds. They go up to five minutes because streams are long."""

_REQUEST_LABELS = ("client", "host", "method", "route")
_Metrics = tuple[Counter, Histogram, Histogram, Histogram]


def prometheus_observer(
    registry: CollectorRegistry = REGISTRY,
    *,
    buckets: Sequence[float] = DEFAULT_BUCKETS,
    max_hosts: int = MAX_HOSTS,
) -> Observer:
    """Return an observer that counts and times exchanges. Use one for all clients.

        observe = prometheus_observer()
        client_lifespan(observers=[observe])

    It also registers gauges of open and waiting exchanges. They are read at each scrape, for all
    clients that lifespans of this process have open.

    Arguments:
        registry: The registry of the metrics. Each registry can have one observer.
        buckets: Upper bounds of the histograms' buckets, in seconds.
        max_hosts: Maximum number of hosts in labels. Later hosts are recorded as "_OTHER".

    Returns:
        A function for `client_lifespan(observers=[...])`.

    Raises:
        ImportError: On import, if prometheus-client is not installed. The extra `prometheus`
            installs it.
        ValueError: If the registry already has these metrics.
    """

    def histogram(name: str, text: str) -> Histogram:
        return Histogram(
            f"asgi_upstream_{name}", text, _REQUEST_LABELS, registry=registry, buckets=buckets
        )

    exchanges_total = Counter(
        "asgi_upstream_exchanges",
        "Ended exchanges by outcome and by the upstream's status.",
        (*_REQUEST_LABELS, "status", "outcome"),
        registry=registry,
    )
    to_headers = histogram("time_to_headers_seconds", "Time to the upstream's headers.")
    to_first_byte = histogram(
        "time_to_first_byte_seconds", "Time to the first byte of the upstream's body."
    )
    duration = histogram("exchange_duration_seconds", "Duration of an exchange.")
    registry.register(_OpenExchangesCollector())
    hosts = BoundedLabels(max_hosts)
    by_labels: dict[object, _Metrics] = {}  # a cache, because `labels()` is slow

    def observe(record: ExchangeRecord) -> None:
        method, host = bounded_method(record.method), hosts[record.host]
        key = (record.client, host, method, record.route, record.status, record.outcome)
        metrics = by_labels.get(key)
        if metrics is None:
            labels = (record.client or "", host, method, record.route or "")
            metrics = by_labels[key] = (
                exchanges_total.labels(*labels, record.status or "", record.outcome),
                to_headers.labels(*labels),
                to_first_byte.labels(*labels),
                duration.labels(*labels),
            )
        total, headers, first_byte, exchange = metrics
        total.inc()
        if record.time_to_headers is not None:
            headers.observe(record.time_to_headers)
        if record.time_to_first_byte is not None:
            first_byte.observe(record.time_to_first_byte)
        exchange.observe(record.duration)

    return observe


class _OpenExchangesCollector(Collector):
    """Reads the gauges at each scrape, so that exchanges cost nothing."""

    def collect(self) -> Iterable[Metric]:
        open_exchanges = GaugeMetricFamily(
            "asgi_upstream_open_exchanges", "Exchanges in progress.", labels=["client"]
        )
        waiting_exchanges = GaugeMetricFamily(
            "asgi_upstream_waiting_exchanges",
            "Exchanges that wait for a connection. Only on AsyncioTransport.",
            labels=["client"],
        )
        for name, count in open_exchange_counts().items():
            open_exchanges.add_metric([name], count.open)
            if count.waiting is not None:
                waiting_exchanges.add_metric([name], count.waiting)
        return open_exchanges, waiting_exchanges
