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
        buckets: Upper bounds of the histograms' buckets, in seconds. Default: 5 ms to 5 minutes.
        max_hosts: Maximum number of hosts in labels. Later hosts are recorded as "_OTHER".
            Default: 100.

    Returns:
        A function for `client_lifespan(observers=[...])`.

    Raises:
        ImportError: On import, if prometheus-client is not installed. The extra `prometheus`
            installs it.
        ValueError: If the registry already has these metrics.
    """
    exchange_metrics = _ExchangeMetrics(registry, buckets, max_hosts)
    registry.register(_OpenExchangesCollector())
    return exchange_metrics.record


class _ExchangeMetrics:
    """Counts and times exchanges that have ended."""

    def __init__(
        self, registry: CollectorRegistry, buckets: Sequence[float], max_hosts: int
    ) -> None:
        def histogram(name: str, text: str) -> Histogram:
            return Histogram(
                f"asgi_upstream_{name}", text, _REQUEST_LABELS, registry=registry, buckets=buckets
            )

        self._total = Counter(
            "asgi_upstream_exchanges",
            "Ended exchanges by outcome and by the upstream's status.",
            (*_REQUEST_LABELS, "status", "outcome"),
            registry=registry,
        )
        self._histograms = (
            histogram("time_to_headers_seconds", "Time to the upstream's headers."),
            histogram(
                "time_to_first_byte_seconds", "Time to the first byte of the upstream's body."
            ),
            histogram("exchange_duration_seconds", "Duration of an exchange."),
        )
        self._hosts = BoundedLabels(max_hosts)
        self._children: dict[object, tuple[Counter, list[Histogram]]] = {}

    def record(self, record: ExchangeRecord) -> None:
        total, histograms = self._find_children(record)
        total.inc()
        values = (record.time_to_headers, record.time_to_first_byte, record.duration)
        for histogram, seconds in zip(histograms, values, strict=True):
            if seconds is not None:
                histogram.observe(seconds)

    def _find_children(self, record: ExchangeRecord) -> tuple[Counter, list[Histogram]]:
        """Return the metrics with the labels of a record. They are cached: `labels()` is slow."""
        method, host = bounded_method(record.method), self._hosts[record.host]
        key = (record.client, host, method, record.route, record.status, record.outcome)
        children = self._children.get(key)
        if children is None:
            labels = (record.client or "", host, method, record.route or "")
            children = self._children[key] = (
                self._total.labels(*labels, record.status or "", record.outcome),
                [histogram.labels(*labels) for histogram in self._histograms],
            )
        return children


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
