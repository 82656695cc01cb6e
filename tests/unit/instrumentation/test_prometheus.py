"""Each exchange is counted and timed, under labels that stay few; gauges are of now."""

import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from asgi_upstream import combine_lifespans
from asgi_upstream.instrumentation.prometheus import DEFAULT_BUCKETS, prometheus_observer
from asgi_upstream.records import Outcome
from tests.support.flavor import client_lifespan, httpx
from tests.support.prometheus import TIMES, scrape
from tests.support.records import Busy, failure, open_clients_are, record

LABELS = {
    "client": "client",
    "host": "api.example:8443",
    "method": "GET",
    "route": "/items/{id}",
}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_exchanges_are_counted_by_outcome_and_status(registry: CollectorRegistry) -> None:
    observe = prometheus_observer(registry)
    for one in (record(), record(), record(status=404), failure(Outcome.READ_TIMEOUT)):
        observe(one)
    seen = scrape(registry)
    assert seen.value("exchanges_total", status="200", outcome="completed", **LABELS) == 2
    assert seen.value("exchanges_total", status="404", outcome="completed", **LABELS) == 1
    assert seen.value("exchanges_total", status="", outcome="read_timeout", **LABELS) == 1
    assert seen.value("exchanges_total") == 4


def test_times_are_in_histograms(registry: CollectorRegistry) -> None:
    prometheus_observer(registry)(record())
    seen = scrape(registry)
    for name, seconds in zip(TIMES, (0.02, 0.2, 2.0), strict=True):
        assert seen.all(f"{name}_sum") == [(LABELS, seconds)]
        assert seen.all(f"{name}_count") == [(LABELS, 1)]
        for end in DEFAULT_BUCKETS:
            assert seen.value(f"{name}_bucket", le=str(end), **LABELS) == (end >= seconds)


def test_a_time_that_there_was_not_is_not_counted(registry: CollectorRegistry) -> None:
    observe = prometheus_observer(registry)
    observe(failure())
    observe(record(status=204, time_to_first_byte=None))
    seen = scrape(registry)
    assert [seen.value(f"{name}_count") for name in TIMES] == [1, 0, 2]


def test_what_is_not_known_is_an_empty_label(registry: CollectorRegistry) -> None:
    prometheus_observer(registry)(failure(client=None, route=None))
    ((labels, _),) = scrape(registry).all("exchanges_total")
    assert (labels["client"], labels["route"], labels["status"]) == ("", "", "")


def test_methods_that_callers_make_up_are_one(registry: CollectorRegistry) -> None:
    observe = prometheus_observer(registry)
    for number in range(1000):
        observe(record(method=f"BREW{number}"))
    observe(record(method="get"))  # methods are case-sensitive
    observe(record(method="PATCH"))
    seen = scrape(registry)
    assert {of["method"]: v for of, v in seen.all("exchanges_total")} == {
        "_OTHER": 1001,
        "PATCH": 1,
    }


def test_hosts_past_a_number_are_one(registry: CollectorRegistry) -> None:
    observe = prometheus_observer(registry, max_hosts=2)
    for _ in range(2):
        for number in range(50):
            observe(record(host=f"host{number}.example"))
    seen = scrape(registry)
    counts = {of["host"]: value for of, value in seen.all("exchanges_total")}
    assert counts == {"host0.example": 2, "host1.example": 2, "_OTHER": 96}
    assert len(seen.all("exchange_duration_seconds_count")) == 3


def test_gauges_tell_what_is_open_and_waiting_at_the_scrape(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    prometheus_observer(registry)
    assert scrape(registry).all("open_exchanges") == []
    busy = Busy(open=3, waiting=2)
    open_clients_are(monkeypatch, ("client", busy), ("billing", Busy(open=1)))
    seen = scrape(registry)
    assert seen.all("open_exchanges") == [({"client": "client"}, 3), ({"client": "billing"}, 1)]
    assert seen.all("waiting_exchanges") == [({"client": "client"}, 2)]  # the other cannot say
    busy.open_count = 0
    assert scrape(registry).value("open_exchanges", client="client") == 0


def test_clients_of_one_name_in_two_apps_are_added_up(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    prometheus_observer(registry)
    twins = [Busy(open=3, waiting=2), Busy(open=1), Busy(open=4, waiting=1)]
    open_clients_are(monkeypatch, *(("client", twin) for twin in twins))
    seen = scrape(registry)
    assert seen.all("open_exchanges") == [({"client": "client"}, 8)]
    assert seen.all("waiting_exchanges") == [({"client": "client"}, 3)]


@pytest.mark.anyio
async def test_sync_client_has_no_gauge(registry: CollectorRegistry) -> None:
    """It cannot have exchanges, so its gauge would always be 0."""
    prometheus_observer(registry)
    lifespan = combine_lifespans(
        client_lifespan(), client_lifespan(httpx.Client, name="sync_client")
    )
    async with lifespan(None):
        gauge = "asgi_upstream_open_exchanges"
        assert registry.get_sample_value(gauge, {"client": "client"}) == 0
        assert registry.get_sample_value(gauge, {"client": "sync_client"}) is None


def test_a_second_observer_in_one_registry_is_an_error_at_once(registry: CollectorRegistry) -> None:
    prometheus_observer(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        prometheus_observer(registry)


def test_every_metric_has_a_text_that_says_what_it_is(registry: CollectorRegistry) -> None:
    prometheus_observer(registry)(record())
    families = [f for f in scrape(registry).families.values() if not f.name.endswith("_created")]
    assert len(families) == 6
    for family in families:
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "histogram", "gauge")


MULTIPROCESS = """
from asgi_upstream.instrumentation.prometheus import prometheus_observer
from tests.support.records import record
prometheus_observer()(record())
"""


@pytest.mark.process
def test_workers_of_one_server_add_up(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry
) -> None:
    from prometheus_client.multiprocess import MultiProcessCollector

    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for _ in range(2):
        subprocess.run([sys.executable, "-c", MULTIPROCESS], check=True, timeout=300)
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    seen = scrape(registry)
    assert seen.value("exchanges_total", outcome="completed") == 2
    assert [seen.value(f"{name}_count") for name in TIMES] == [2, 2, 2]
