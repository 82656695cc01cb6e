"""Who observes, and what an observer can and cannot do."""

import dataclasses
import logging
import time
from typing import Any

import pytest

import asgi_upstream._exchange.recording
from asgi_upstream import (
    BufferedResponse,
    ExchangeRecord,
    Outcome,
    ReverseProxy,
    StreamedResponse,
    UpstreamError,
    count_open_exchanges,
)
from asgi_upstream.instrumentation.logs import log_observer
from tests.support.asgi import Caller
from tests.support.flavor import AsyncioTransport, client_lifespan, httpx
from tests.support.recorded import (
    OWN,
    Answer,
    Observed,
    Raised,
    every_way,
    forwarded,
    is_in_order,
    observing,
    recorded_tests,
    responses,
    streamed,
)
from tests.support.upstream import Upstream

pytestmark = recorded_tests


# Who observes.


@responses
async def test_observers_of_a_response_are_told_besides_the_clients(
    seen: Observed, way: Answer
) -> None:
    own: list[ExchangeRecord] = []
    record = await seen.record(way(seen, "/item", observers=[own.append, own.append]))
    assert own == [record, record]
    assert own[0] is record
    assert record.client == "client"


async def test_observers_of_a_forward_app_are_told(seen: Observed) -> None:
    own: list[ExchangeRecord] = []
    record = await seen.record(forwarded(seen, "/item", observers=[own.append]))
    assert own == [record]


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_a_client_of_ones_own_has_no_name(upstream: Upstream, cls: Any) -> None:
    own: list[ExchangeRecord] = []
    async with httpx.AsyncClient(base_url=upstream.url) as client:
        await Caller().call(
            cls(client, client.build_request("GET", "/item"), observers=[own.append])
        )
        assert count_open_exchanges(client) == 0
    assert [(r.client, r.outcome, r.bytes_received) for r in own] == [
        (None, Outcome.COMPLETED, 1024)
    ]


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_an_adopted_response_tells_its_own_observers(seen: Observed, cls: Any) -> None:
    own: list[ExchangeRecord] = []
    for read in (False, True):
        upstream = await seen.client.send(seen.get("/item?size=20"), stream=not read)
        await seen.call(cls.from_response(upstream, observers=[own.append]))
        record = own.pop()
        is_in_order(record)
        assert (record.outcome, record.status, record.bytes_received) == (
            Outcome.COMPLETED,
            200,
            20,
        )
        assert (record.client, record.host) == (None, f"127.0.0.1:{seen.upstream.port}")
    upstream = await seen.client.send(seen.get("/short"), stream=True)
    await seen.call(cls.from_response(upstream, observers=[own.append]))
    assert own.pop().outcome is Outcome.BODY_FAILED


@every_way
async def test_an_observer_that_raises_is_logged_and_changes_nothing(
    seen: Observed, way: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    own: list[ExchangeRecord] = []

    def broken(record: ExchangeRecord) -> None:
        raise Raised

    caller = await seen.call(way(seen, "/item?size=3", observers=[broken, own.append]))
    assert (caller.complete, caller.body, len(own)) == (True, b"xxx", 1)
    assert seen.only is own[0]
    (line,) = [r for r in caplog.records if r.name == "asgi_upstream"]
    assert line.levelno == logging.ERROR
    assert "broken" in line.getMessage()
    assert line.exc_info is not None
    assert line.exc_info[0] is Raised


@every_way
async def test_slow_observer_delays_no_response_and_is_not_timed(
    seen: Observed, way: Answer
) -> None:
    caller, complete, began = Caller(), list[bool](), time.monotonic()
    seconds: list[float] = []

    def slow(record: ExchangeRecord) -> None:
        complete.append(caller.complete)
        seconds.append(time.monotonic() - began)
        time.sleep(0.5)

    record = await seen.record(way(seen, "/item", observers=[slow]), caller)
    assert complete == [True]
    assert record.duration <= seconds[0]


async def test_an_observer_does_not_hide_a_failure(seen: Observed) -> None:
    def broken(record: ExchangeRecord) -> None:
        raise Raised

    with pytest.raises(UpstreamError):
        await Caller().call(streamed(seen, "/close_at_once", observers=[broken]))
    assert seen.only.outcome is Outcome.PROTOCOL_FAILED


@every_way
async def test_observer_that_raises_system_exit_leaves_nothing_open(
    seen: Observed, way: Answer
) -> None:
    def ending(record: ExchangeRecord) -> None:
        raise SystemExit

    app, caller = way(seen, "/item", observers=[ending]), Caller()
    with pytest.raises(SystemExit):
        await app(caller.scope, caller.receive, caller.send)
    assert caller.complete
    await seen.is_at_rest()
    assert seen.only.outcome is Outcome.COMPLETED


@every_way
async def test_when_an_observer_is_called_nothing_is_open(seen: Observed, way: Answer) -> None:
    opened: list[int] = []

    def look(record: ExchangeRecord) -> None:
        opened.append(count_open_exchanges(seen.client))
        if seen.own is not None:
            state = seen.own.pool_state()
            opened.append(state.open - state.idle)

    for path in ("/item", "/short", "/close_at_once"):
        await seen.record(way(seen, path, observers=[look]))
    assert set(opened) == {0}


async def observing_in_vain(record: ExchangeRecord) -> None:
    raise AssertionError("it is never awaited")


def test_what_makes_an_observer_and_was_not_called_is_refused() -> None:
    uncalled: Any = log_observer
    with pytest.raises(TypeError, match=r"observers=\[log_observer\(\)\]"):
        client_lifespan(observers=[uncalled])
    client_lifespan(observers=[log_observer()])


@pytest.mark.parametrize("observers", [print, [None], [print, "print"], [observing_in_vain]])
async def test_what_cannot_observe_is_told_of_at_once(observers: Any) -> None:
    with pytest.raises(TypeError, match=r"observers=.*: pass a list of plain functions"):
        client_lifespan(observers=observers)
    with pytest.raises(TypeError, match=r"observers=.*: pass a list of plain functions"):
        ReverseProxy(observers=observers)
    async with httpx.AsyncClient() as client:
        request = client.build_request("GET", "http://upstream/")
        with pytest.raises(TypeError, match=r"observers=.*: pass a list of plain functions"):
            StreamedResponse(client, request, observers=observers)


async def test_a_client_that_cannot_be_observed_is_told_of_at_start() -> None:
    class Slotted:
        __slots__ = ("closed",)

        async def aclose(self) -> None:
            self.closed = True

    client = Slotted()
    with pytest.raises(TypeError, match="Slotted"):
        async with client_lifespan(lambda: client, observers=[print])(None):
            pass
    assert client.closed


async def test_a_client_that_is_no_key_is_closed_all_the_same() -> None:
    @dataclasses.dataclass
    class Unhashable:
        closed: bool = False

        async def aclose(self) -> None:
            self.closed = True

    client = Unhashable()
    async with client_lifespan(lambda: client)(None):
        assert count_open_exchanges(client) == 0
    assert client.closed


# No observer.


@every_way
async def test_without_an_observer_nothing_is_made(
    upstream: Upstream, transport: str, way: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*args: object) -> None:
        raise AssertionError("a Tally was made")

    async with observing(upstream, transport) as seen:
        seen.client, client = (
            httpx.AsyncClient(
                base_url=upstream.url, transport=AsyncioTransport() if transport == OWN else None
            ),
            seen.client,
        )
        with monkeypatch.context() as patch:
            patch.setattr(asgi_upstream._exchange.recording, "ExchangeRecorder", made)
            async with seen.client:
                caller = Caller()
                await caller.call(way(seen, "/item?size=3"))
                assert caller.body == b"xxx"
        seen.client = client
        with pytest.MonkeyPatch.context() as patch:  # and with one it would be
            patch.setattr(asgi_upstream._exchange.recording, "ExchangeRecorder", made)
            with pytest.raises(AssertionError, match="Tally"):
                await Caller().call(way(seen, "/item"))


# docs/exchange-records.md
