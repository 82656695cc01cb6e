"""purgatory around two upstreams: one that fails is left alone, and the other is not touched."""

import contextlib
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from purgatory.domain.model import OpenedState

from examples.compositions import circuit_breaking as example
from tests.compositions.callers import leave_when
from tests.compositions.upstream import arrivals
from tests.support.example_apps import imported, served
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

THRESHOLD, TTL = 3, 1.0


@contextmanager
def calling(upstream: Upstream, ttl: float) -> Iterator[httpx.Client]:
    """Calls examples/compositions/circuit_breaking.py, both circuits closed."""
    settings = {"ORDERS_URL": upstream.url, "ITEMS_URL": upstream.url}
    settings |= {"THRESHOLD": str(THRESHOLD), "TTL": str(ttl)}
    app = imported("compositions.circuit_breaking", upstream.url, **settings)
    with served(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as caller:
        yield caller


@pytest.fixture
def caller(upstream: Upstream) -> Iterator[httpx.Client]:
    with calling(upstream, 60) as caller:
        yield caller


@pytest.fixture
def soon_again(upstream: Upstream) -> Iterator[httpx.Client]:
    """A circuit stays open for a moment only."""
    with calling(upstream, TTL) as caller:
        yield caller


def fail(caller: httpx.Client, how: str = "503", times: int = THRESHOLD) -> list[int]:
    params = {"key": "orders", "how": how}
    return [caller.get("/orders/flaky", params=params).status_code for _ in range(times)]


def test_failing_upstream_opens_its_circuit_and_no_other(
    caller: httpx.Client,
) -> None:
    assert fail(caller, times=THRESHOLD + 3) == [503] * (THRESHOLD + 3)
    assert len(arrivals["orders"]) == THRESHOLD
    refused = caller.get("/orders/item")
    assert refused.json() == {"detail": "The upstream is not available"}
    assert 30 < int(refused.headers["retry-after"]) <= 60
    assert caller.get("/items/item").status_code == 200


@pytest.mark.parametrize(("how", "status"), [("500", 500), ("reset", 502)])
def test_each_kind_of_failure_opens_the_circuit(
    caller: httpx.Client, how: str, status: int
) -> None:
    assert fail(caller, how) == [status] * THRESHOLD
    assert caller.get("/orders/item").status_code == 503


def test_callers_errors_do_not_open_the_circuit(caller: httpx.Client, upstream: Upstream) -> None:
    fail(caller, "404", THRESHOLD + 1)
    for _ in range(THRESHOLD + 1):
        leave_when(caller, "/orders/never", lambda: upstream.open_exchanges == 1)
        eventually(lambda: upstream.open_exchanges == 0)
    assert caller.get("/orders/item").status_code == 200


def test_one_success_between_keeps_the_circuit_closed(caller: httpx.Client) -> None:
    for _ in range(3):
        fail(caller, times=THRESHOLD - 1)
        assert caller.get("/orders/item").status_code == 200


def test_an_upstream_that_is_well_again_is_asked_again(soon_again: httpx.Client) -> None:
    fail(soon_again)
    eventually(lambda: soon_again.get("/orders/item").status_code == 200)
    assert [soon_again.get("/orders/item").status_code for _ in range(5)] == [200] * 5


def test_upstream_that_still_fails_opens_circuit_after_one_try(
    soon_again: httpx.Client,
) -> None:
    began = time.monotonic()
    fail(soon_again)

    def asked_once_more() -> bool:
        fail(soon_again, times=1)
        return len(arrivals["orders"]) > THRESHOLD

    eventually(asked_once_more)
    fail(soon_again)
    assert len(arrivals["orders"]) <= THRESHOLD + (time.monotonic() - began) / TTL


@pytest.mark.asyncio
async def test_many_refusals_keep_nothing() -> None:
    transport = example.Breaking(
        "failing", httpx.MockTransport(lambda request: httpx.Response(503))
    )
    async with httpx.AsyncClient(transport=transport) as client:
        for _ in range(100):
            with contextlib.suppress(example.CircuitOpen):
                await client.get("http://any")
    breaker = await transport.breakers.get_breaker("failing")
    with pytest.raises(OpenedState) as raised:
        await breaker.__aenter__()
    assert len(traceback.extract_tb(raised.tb)) < 10
