"""Every exchange ends in exactly one record, and in no count, however it ends.

The upstream is one of raw sockets, which knows what it got and sent. The caller is in memory. What
depends on the server is in tests/integration/test_records.py.
"""

import asyncio
import contextlib
import dataclasses
import gzip
import importlib
import itertools
import logging
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import trustme
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import asgi_upstream._exchange.recording
from asgi_upstream import (
    BufferedResponse,
    ExchangeRecord,
    Outcome,
    PoolExhausted,
    ReverseProxy,
    StreamedResponse,
    UpstreamBodyTooLarge,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    client_lifespan,
    count_open_exchanges,
)
from asgi_upstream.instrumentation.logs import log_observer
from asgi_upstream.testing import aeventually
from asgi_upstream.transport import AsyncioTransport, PoolState
from tests.support.asgi import Caller, answering
from tests.support.example_apps import ROOT, served, until
from tests.support.servers import free_port
from tests.support.upstream import Upstream

pytestmark = [
    pytest.mark.process,
    pytest.mark.anyio,
    # httpcore closes no generator that it gives up, and trio tells of each.
    pytest.mark.filterwarnings("ignore:Async generator '(httpcore|httpx)"),
]

STOCK, OWN = "stock", "AsyncioTransport"
LIMITS = httpx.Limits(max_connections=1)
Answer = Callable[..., ASGIApp]


@pytest.fixture(
    params=[
        pytest.param(OWN, marks=pytest.mark.asyncio_only),
        pytest.param(STOCK, marks=pytest.mark.trio_only),
        pytest.param(STOCK, marks=[pytest.mark.asyncio_only, pytest.mark.slow]),
    ]
)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Observed:
    """A client of a lifespan, and the records of what it did."""

    def __init__(self, client: httpx.AsyncClient, own: AsyncioTransport | None, upstream: Upstream):
        self.client, self.own, self.upstream = client, own, upstream
        self.records: list[ExchangeRecord] = []

    def get(self, path: str, method: str = "GET", **options: Any) -> httpx.Request:
        return self.client.build_request(method, path, **options)

    async def call(self, app: ASGIApp, caller: Caller | None = None) -> Caller:
        """The caller, when its exchange is over, whatever that raised; nothing is open then."""
        caller = caller or Caller()
        with anyio.fail_after(60), contextlib.suppress(Exception):
            await caller.call(app)
        await self.is_at_rest()
        return caller

    async def is_at_rest(self) -> None:
        assert count_open_exchanges(self.client) == 0
        await aeventually(lambda: self.upstream.open_exchanges == 0)
        if self.own is not None:
            state = self.own.pool_state()
            assert (state.connecting, state.waiting) == (0, 0)
            assert state.idle == state.open

    async def record(self, app: ASGIApp, caller: Caller | None = None) -> ExchangeRecord:
        """The one record of an exchange."""
        await self.call(app, caller)
        return self.only

    @property
    def only(self) -> ExchangeRecord:
        (record,) = self.records
        self.records.clear()
        is_in_order(record)
        return record


def is_in_order(record: ExchangeRecord) -> None:
    times = [record.time_to_headers, record.time_to_first_byte, record.duration]
    known = [seconds for seconds in times if seconds is not None]
    assert known == sorted(known)
    assert known[0] >= 0
    assert (record.status is None) == (record.time_to_headers is None)
    assert (record.bytes_received == 0) == (record.time_to_first_byte is None)


@contextlib.asynccontextmanager
async def observing(upstream: Upstream, transport: str, **options: Any) -> AsyncIterator[Observed]:
    own = AsyncioTransport(limits=LIMITS) if transport == OWN else None
    observers: list[Callable[[ExchangeRecord], None]] = []
    lifespan = client_lifespan(
        observers=observers,
        base_url=upstream.url,
        transport=own or httpx.AsyncHTTPTransport(limits=LIMITS),
        timeout=10,
        **options,
    )
    async with lifespan(None) as state:
        client = state["client"]
        assert isinstance(client, httpx.AsyncClient)
        observed = Observed(client, own, upstream)
        observers.append(observed.records.append)
        yield observed
        await observed.is_at_rest()
        assert observed.records == [], "more records than exchanges"
    if own is not None:
        assert own.pool_state() == PoolState(0, 0, 0, 0)


@pytest.fixture
async def seen(upstream: Upstream, transport: str) -> AsyncIterator[Observed]:
    async with observing(upstream, transport) as observed:
        yield observed


# Each way to answer, as a function of what is seen, the path and the options.


def streamed(seen: Observed, path: str, **options: Any) -> ASGIApp:
    timeout = options.pop("timeout", 10)
    return StreamedResponse(seen.client, seen.get(path, timeout=timeout), **options)


def buffered(seen: Observed, path: str, **options: Any) -> ASGIApp:
    timeout = options.pop("timeout", 10)
    return BufferedResponse(seen.client, seen.get(path, timeout=timeout), **options)


def forwarded(seen: Observed, path: str, **options: Any) -> ASGIApp:
    """The mount of an app; what is forwarded has the client's timeouts, so a hook sets them."""
    timeout = httpx.Timeout(options.pop("timeout", 10)).as_dict()

    def on_request(request: httpx.Request) -> None:
        request.extensions["timeout"] = timeout

    app = Starlette(routes=[Mount("/api", ReverseProxy(on_request=on_request, **options))])

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        target, _, query = path.partition("?")
        there = {"path": "/api" + target, "raw_path": b"/api" + target.encode()}
        state = {"state": {"client": seen.client}, "query_string": query.encode()}
        await app({**scope, **there, **state}, receive, send)

    return called


every_way = pytest.mark.parametrize("way", [streamed, buffered, forwarded])
unbuffered = pytest.mark.parametrize("way", [streamed, forwarded])
responses = pytest.mark.parametrize("way", [streamed, buffered])


# Completed.


@every_way
async def test_a_record_says_what_happened(seen: Observed, way: Answer, upstream: Upstream) -> None:
    record = await seen.record(way(seen, "/item?size=1000"))
    assert record == ExchangeRecord(
        client="client",
        method="GET",
        host=f"127.0.0.1:{upstream.port}",
        route="/api" if way is forwarded else None,
        status=200,
        outcome=Outcome.COMPLETED,
        exception=None,
        duration=record.duration,
        time_to_headers=record.time_to_headers,
        time_to_first_byte=record.time_to_first_byte,
        bytes_sent=0,
        bytes_received=1000,
        connection_reused=None if seen.own is None else False,
    )
    assert record.time_to_first_byte is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.status = 500  # type: ignore[misc]


@every_way
async def test_a_reused_connection_is_told_from_a_new_one(seen: Observed, way: Answer) -> None:
    reused = [(await seen.record(way(seen, "/item"))).connection_reused for _ in range(3)]
    assert reused == ([None] * 3 if seen.own is None else [False, True, True])


@unbuffered
async def test_the_first_byte_is_timed_and_not_the_last(seen: Observed, way: Answer) -> None:
    waits = [0.2]

    async def slow_at_first(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message.get("body") and waits:
                await anyio.sleep(waits.pop())
            await send(message)

        await way(seen, "/chunks?count=2&delay=0.05")(scope, receive, sending)

    record = await seen.record(slow_at_first)
    assert record.outcome is Outcome.COMPLETED
    assert record.time_to_first_byte is not None
    assert record.duration - record.time_to_first_byte >= 0.2


@every_way
async def test_the_headers_are_timed_before_on_response(seen: Observed, way: Answer) -> None:
    async def slow(upstream: httpx.Response) -> None:
        await anyio.sleep(0.2)

    record = await seen.record(way(seen, "/item", on_response=slow))
    assert record.time_to_headers is not None
    assert record.duration - record.time_to_headers >= 0.2


@every_way
@pytest.mark.parametrize("status", [204, 304, 404, 500])
async def test_an_answer_without_a_body_has_no_first_byte(
    seen: Observed, way: Answer, status: int
) -> None:
    record = await seen.record(way(seen, f"/status?code={status}"))
    assert (record.outcome, record.status) == (Outcome.COMPLETED, status)
    assert (record.bytes_received, record.time_to_first_byte) == (0, None)


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_a_head_request_receives_nothing(seen: Observed, cls: Any) -> None:
    app = cls(seen.client, seen.get("/item", "HEAD"))
    record = await seen.record(app, Caller("HEAD"))
    assert (record.outcome, record.method, record.status) == (Outcome.COMPLETED, "HEAD", 200)
    assert record.bytes_received == 0


@every_way
async def test_chunks_are_counted_without_their_framing(seen: Observed, way: Answer) -> None:
    record = await seen.record(way(seen, "/chunks?count=5"))
    assert record.bytes_received == len(b"chunk-0;") * 5


@every_way
@pytest.mark.parametrize("decode", [False, True])
async def test_a_compressed_body_is_counted_as_it_came(
    seen: Observed, way: Answer, decode: bool
) -> None:
    record = await seen.record(way(seen, "/zipped", decode=decode))
    assert record.outcome is Outcome.COMPLETED
    assert record.bytes_received == len(gzip.compress(b'{"zipped": true}'))


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_the_body_of_a_request_is_counted_as_the_upstream_got_it(
    seen: Observed, cls: Any, upstream: Upstream
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for size in (1, 0, 70_000, 3):
            yield b"u" * size

    bodies: list[tuple[Any, dict[str, str]]] = [
        (b"u" * 70_004, {}),
        (parts(), {}),
        (parts(), {"content-length": "70004"}),
    ]
    for content, headers in bodies:
        upstream.requests.clear()
        request = seen.get("/echo", "POST", content=content, headers=headers)
        record = await seen.record(cls(seen.client, request))
        got = upstream.requests[0]
        assert record.bytes_sent == len(got.body) == 70_004
        assert record.bytes_received == len(got.head + got.body)


async def test_a_forwarded_body_is_counted(seen: Observed, upstream: Upstream) -> None:
    length = [(b"content-length", b"9")]
    caller = Caller("POST", headers=length, body=[b"abc", b"defghi"])
    record = await seen.record(forwarded(seen, "/echo"), caller)
    assert (record.bytes_sent, record.method, record.status) == (9, "POST", 200)


@responses
async def test_background_tasks_run_when_the_record_is_made(seen: Observed, way: Answer) -> None:
    at: list[int] = []
    task = BackgroundTask(lambda: at.append(len(seen.records)))
    record = await seen.record(way(seen, "/item", background=task))
    assert (record.outcome, at) == (Outcome.COMPLETED, [1])


async def test_a_body_that_a_hook_or_on_response_read_is_counted(
    upstream: Upstream, transport: str
) -> None:
    async def read(upstream: httpx.Response) -> None:
        await upstream.aread()

    async def refuse(upstream: httpx.Response) -> None:
        await upstream.aread()
        raise HTTPException(403)

    size = len(gzip.compress(b'{"zipped": true}'))
    async with observing(upstream, transport) as seen:
        for on_response in (read, refuse):
            record = await seen.record(streamed(seen, "/zipped", on_response=on_response))
            assert record.bytes_received == size
    async with observing(upstream, transport, event_hooks={"response": [read]}) as seen:
        for way in (streamed, buffered, forwarded):
            record = await seen.record(way(seen, "/zipped"))
            assert (record.outcome, record.bytes_received) == (Outcome.COMPLETED, size)


# The upstream fails.


@pytest.fixture(scope="module")
def untrusted() -> Iterator[Upstream]:
    """An upstream with a certificate that nobody signed whom the client knows."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with Upstream(tls=tls) as upstream:
        yield upstream


@responses
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_connection_is_connect_failed(
    seen: Observed, untrusted: Upstream, way: Answer, scheme: str
) -> None:
    port = free_port() if scheme == "http" else untrusted.port
    record = await seen.record(way(seen, f"{scheme}://127.0.0.1:{port}/"))
    assert (record.outcome, record.host) == (Outcome.CONNECT_FAILED, f"127.0.0.1:{port}")
    assert isinstance(record.exception, httpx.ConnectError)
    assert (record.status, record.bytes_sent, record.connection_reused) == (None, 0, None)


@every_way
@pytest.mark.parametrize(
    "path", ["close_at_once", "reset_at_once", "close_in_head", "no_http", "huge_head"]
)
async def test_what_breaks_before_its_headers_is_protocol_failed(
    seen: Observed, way: Answer, path: str
) -> None:
    record = await seen.record(way(seen, f"/{path}"))
    assert (record.outcome, record.status) == (Outcome.PROTOCOL_FAILED, None)
    assert isinstance(record.exception, httpx.TransportError)


@every_way
async def test_a_status_that_is_none_is_protocol_failed(seen: Observed, way: Answer) -> None:
    record = await seen.record(way(seen, "/odd_status"))
    assert record.outcome is Outcome.PROTOCOL_FAILED
    assert isinstance(record.exception, UpstreamProtocolError | httpx.RemoteProtocolError)


@every_way
@pytest.mark.parametrize("path", ["short", "short_chunked", "reset_mid_body", "broken_chunk"])
async def test_a_body_that_breaks_off_is_body_failed(
    seen: Observed, way: Answer, path: str
) -> None:
    record = await seen.record(way(seen, f"/{path}"))
    assert (record.outcome, record.status) == (Outcome.BODY_FAILED, 200)
    assert record.bytes_received == 100
    assert isinstance(record.exception, httpx.TransportError)


@every_way
@pytest.mark.parametrize("path", ["broken_gzip", "short_gzip"])
async def test_a_body_that_cannot_be_decoded_is_body_failed(
    seen: Observed, way: Answer, path: str
) -> None:
    record = await seen.record(way(seen, f"/{path}", decode=True))
    assert (record.outcome, record.status) == (Outcome.BODY_FAILED, 200)
    assert isinstance(record.exception, httpx.DecodingError)
    assert record.bytes_received > 0


@unbuffered
async def test_an_error_frame_does_not_change_the_outcome(seen: Observed, way: Answer) -> None:
    def raising(exc: Exception) -> bytes:
        raise KeyError("no such frame")

    for frame in (lambda exc: b"end", raising, lambda exc: "no bytes"):
        record = await seen.record(way(seen, "/short", on_stream_error=frame))
        assert (record.outcome, record.bytes_received) == (Outcome.BODY_FAILED, 100)
        assert isinstance(record.exception, httpx.TransportError)


async def test_disconnect_at_the_error_frame_keeps_the_outcome(
    seen: Observed,
) -> None:
    # The head, an empty part, and the only chunk are sent; then the frame is not.
    caller = Caller(send_fails_after=3)
    app = streamed(seen, "/short_chunked", on_stream_error=lambda exc: b"end")
    assert (await seen.record(app, caller)).outcome is Outcome.BODY_FAILED


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """An upstream that takes connections and never reads."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(5)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/"


@contextlib.contextmanager
def full() -> Iterator[str]:
    """A full backlog: what Linux does with one more connection is to say nothing."""
    with socket.socket() as listening, contextlib.ExitStack() as filling:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(2):
            sock = filling.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


@responses
async def test_a_connection_that_takes_too_long_is_connect_timeout(
    seen: Observed, way: Answer
) -> None:
    with full() as url:
        record = await seen.record(way(seen, url, timeout=httpx.Timeout(10, connect=0.2)))
    assert record.outcome is Outcome.CONNECT_TIMEOUT
    assert isinstance(record.exception, httpx.ConnectTimeout)
    assert record.duration >= 0.2


@every_way
@pytest.mark.parametrize(
    ("path", "status", "received"),
    [("never", None, 0), ("silent_after_head", 200, 0), ("silent_mid_body", 200, 5)],
)
async def test_silence_past_the_timeout_is_read_timeout(
    seen: Observed, way: Answer, path: str, status: int | None, received: int
) -> None:
    record = await seen.record(way(seen, f"/{path}", timeout=httpx.Timeout(10, read=0.2)))
    assert (record.outcome, record.status) == (Outcome.READ_TIMEOUT, status)
    assert (record.bytes_received, type(record.exception)) == (received, httpx.ReadTimeout)


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_bytes_that_were_sent_before_the_silence_are_counted(
    seen: Observed, cls: Any
) -> None:
    request = seen.get("/never", "POST", content=b"12345", timeout=httpx.Timeout(10, read=0.2))
    record = await seen.record(cls(seen.client, request))
    assert (record.outcome, record.bytes_sent) == (Outcome.READ_TIMEOUT, 5)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(1 << 20)


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_an_upload_that_is_not_taken_is_write_timeout(seen: Observed, cls: Any) -> None:
    with deaf() as url:
        timeout = httpx.Timeout(10, write=0.2)
        request = seen.get(url, "POST", content=endless(), timeout=timeout)
        record = await seen.record(cls(seen.client, request))
    assert (record.outcome, record.status) == (Outcome.WRITE_TIMEOUT, None)
    assert isinstance(record.exception, httpx.WriteTimeout)
    assert record.bytes_sent > 0


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_a_deadline_that_passes_during_the_upload_is_deadline(
    seen: Observed, cls: Any
) -> None:
    with deaf() as url:
        request = seen.get(url, "POST", content=endless())
        record = await seen.record(cls(seen.client, request, deadline=0.2))
    assert (record.outcome, type(record.exception)) == (Outcome.DEADLINE, UpstreamTimeout)
    assert record.bytes_sent > 0


@pytest.mark.parametrize(
    ("way", "path", "status"),
    [
        *itertools.product([streamed, forwarded, buffered], ["never"], [None]),
        *itertools.product([streamed, forwarded, buffered], ["silent_after_head"], [200]),
        *itertools.product([streamed, forwarded], ["pour"], [200]),
    ],
)
async def test_a_deadline_that_passes_is_deadline(
    seen: Observed, way: Answer, path: str, status: int | None
) -> None:
    record = await seen.record(way(seen, f"/{path}", deadline=0.3))
    assert (record.outcome, record.status) == (Outcome.DEADLINE, status)
    assert isinstance(record.exception, UpstreamTimeout)
    assert record.duration >= 0.3


@every_way
async def test_a_deadline_that_passes_in_on_response_is_deadline(
    seen: Observed, way: Answer
) -> None:
    async def slow(upstream: httpx.Response) -> None:
        await anyio.sleep(10)

    record = await seen.record(way(seen, "/item", on_response=slow, deadline=0.2))
    assert (record.outcome, record.status) == (Outcome.DEADLINE, 200)


@every_way
async def test_no_place_in_time_is_pool_exhausted(seen: Observed, way: Answer) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(seen.call, streamed(seen, "/never"))
        await aeventually(lambda: seen.upstream.open_exchanges == 1)
        app = way(seen, "/item", timeout=httpx.Timeout(10, pool=0.2))
        caller = Caller()
        with contextlib.suppress(PoolExhausted):
            await caller.call(app)
        record = seen.only
        group.cancel_scope.cancel()
    assert (record.outcome, record.status) == (Outcome.POOL_EXHAUSTED, None)
    assert isinstance(record.exception, httpx.PoolTimeout)
    assert seen.only.outcome is Outcome.CANCELLED


async def test_a_body_past_max_bytes_is_too_large(seen: Observed) -> None:
    record = await seen.record(buffered(seen, "/item?size=1000", max_bytes=10))
    assert (record.outcome, record.status) == (Outcome.TOO_LARGE, 200)
    assert isinstance(record.exception, UpstreamBodyTooLarge)
    bomb = await seen.record(buffered(seen, "/bomb", max_bytes=100_000, decode=True))
    assert (bomb.outcome, bomb.status) == (Outcome.TOO_LARGE, 200)
    assert 0 < bomb.bytes_received < 300_000


# The app fails.


class Raised(Exception):
    pass


async def breaking(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in body:
        yield chunk
        raise Raised


async def refusing(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for _ in body:
        raise HTTPException(403)
    yield b""


def no_iterator(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    raise Raised


@every_way
@pytest.mark.parametrize("transform", [breaking, refusing, no_iterator])
@pytest.mark.parametrize("on_response", [None, lambda upstream: None], ids=["", "on_response"])
async def test_a_transform_that_raises_is_transform_failed(
    seen: Observed, way: Answer, transform: Any, on_response: Any
) -> None:
    options = {"transform": transform, "on_response": on_response}
    record = await seen.record(way(seen, "/chunks", **options))
    assert (record.outcome, record.status) == (Outcome.TRANSFORM_FAILED, 200)
    assert isinstance(record.exception, Raised | HTTPException)


@every_way
async def test_an_upstream_that_fails_in_a_transform_is_body_failed(
    seen: Observed, way: Answer
) -> None:
    async def passing(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            yield chunk

    record = await seen.record(way(seen, "/short", transform=passing))
    assert (record.outcome, record.bytes_received) == (Outcome.BODY_FAILED, 100)


@every_way
@pytest.mark.parametrize("transform", [None, breaking], ids=["", "transform"])
async def test_an_on_response_that_raises_is_app_failed(
    seen: Observed, way: Answer, transform: Any
) -> None:
    def broken(upstream: httpx.Response) -> None:
        raise Raised

    for on_response in (broken, lambda upstream: "no response"):
        options = {"transform": transform, "on_response": on_response}
        record = await seen.record(way(seen, "/item", **options))
        assert (record.outcome, record.status) == (Outcome.APP_FAILED, 200)
        assert isinstance(record.exception, Raised | TypeError)


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
@pytest.mark.parametrize("on_response", [None, lambda upstream: None], ids=["", "on_response"])
@pytest.mark.parametrize("error", [Raised(), HTTPException(400)], ids=["bug", "refusal"])
async def test_a_request_whose_own_body_raises_is_app_failed(
    seen: Observed, cls: Any, on_response: Any, error: Exception
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        raise error

    request = seen.get("/echo", "POST", content=parts())
    record = await seen.record(cls(seen.client, request, on_response=on_response))
    assert (record.outcome, record.status, record.bytes_sent) == (Outcome.APP_FAILED, None, 3)
    assert record.exception is error


@pytest.mark.asyncio_only
async def test_upload_that_fails_after_an_early_response_is_app_failed(
    upstream: Upstream,
) -> None:
    """Only AsyncioTransport takes an answer before the upload's end."""
    answered = anyio.Event()
    upstream.post("/early").content(b"in the end").stall(after=2).respond_early()

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        await answered.wait()
        raise HTTPException(400)

    own: list[ExchangeRecord] = []
    async with httpx.AsyncClient(transport=AsyncioTransport()) as client:
        app = StreamedResponse(
            client,
            client.build_request("POST", f"{upstream.url}/early", content=parts()),
            on_response=lambda upstream: answered.set(),
            observers=[own.append],
        )
        with pytest.raises(HTTPException):
            await Caller().call(app)
    (record,) = own
    assert (record.outcome, record.status, record.bytes_sent) == (Outcome.APP_FAILED, 200, 3)


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_each_call_of_one_response_has_its_record(seen: Observed, cls: Any) -> None:
    app = cls(seen.client, seen.get("/item"))
    for _ in range(2):
        assert (await seen.record(app)).outcome is Outcome.COMPLETED

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"

    app = cls(seen.client, seen.get("/echo", "POST", content=parts()))
    assert (await seen.record(app)).bytes_sent == 3
    again = await seen.record(app)
    assert (again.outcome, again.status, again.bytes_sent) == (Outcome.APP_FAILED, None, 0)
    assert isinstance(again.exception, RuntimeError)


@responses
async def test_an_exchange_on_a_closed_client_is_app_failed(
    upstream: Upstream, transport: str, way: Answer
) -> None:
    async with observing(upstream, transport) as seen:
        pass
    record = await seen.record(way(seen, "/item"))
    assert (record.outcome, record.status, record.client) == (Outcome.APP_FAILED, None, None)
    assert isinstance(record.exception, RuntimeError)


# on_response answers instead.


@every_way
async def test_another_answer_is_replaced(seen: Observed, way: Answer) -> None:
    record = await seen.record(
        way(seen, "/item?size=50", on_response=lambda upstream: JSONResponse({}))
    )
    assert (record.outcome, record.status, record.exception) == (Outcome.REPLACED, 200, None)
    assert record.bytes_received == (50 if way is buffered else 0)


@every_way
async def test_a_refusal_is_replaced(seen: Observed, way: Answer) -> None:
    def forbid(upstream: httpx.Response) -> None:
        raise HTTPException(403)

    record = await seen.record(way(seen, "/item", on_response=forbid))
    assert (record.outcome, record.status) == (Outcome.REPLACED, 200)
    assert isinstance(record.exception, HTTPException)


@every_way
async def test_upstream_error_of_on_response_is_an_upstream_failure(
    seen: Observed, way: Answer
) -> None:
    cause = ValueError("no JSON")

    def no_json(upstream: httpx.Response) -> None:
        raise UpstreamProtocolError

    def no_json_for_a_reason(upstream: httpx.Response) -> None:
        raise UpstreamProtocolError from cause

    for on_response, exception in [(no_json, None), (no_json_for_a_reason, cause)]:
        record = await seen.record(way(seen, "/item", on_response=on_response))
        assert (record.outcome, record.status) == (Outcome.PROTOCOL_FAILED, 200)
        assert record.exception is exception or exception is None


@every_way
async def test_what_another_answer_raises_is_in_the_record(seen: Observed, way: Answer) -> None:
    class Broken(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise Raised

    record = await seen.record(way(seen, "/item", on_response=lambda upstream: Broken()))
    assert record.outcome is Outcome.REPLACED
    assert isinstance(record.exception, Raised)


@every_way
async def test_an_exchange_in_place_of_another_has_a_record_of_its_own(
    seen: Observed, way: Answer
) -> None:
    def instead(upstream: httpx.Response) -> Response:
        return StreamedResponse(seen.client, seen.get("/item?size=7"))

    await seen.call(way(seen, "/status?code=503", on_response=instead))
    outcomes = [(record.outcome, record.status) for record in seen.records]
    assert outcomes == [(Outcome.COMPLETED, 200), (Outcome.REPLACED, 503)]
    seen.records.clear()


# The caller leaves, or somebody cancels.


@pytest.mark.parametrize(
    ("way", "path"),
    [(streamed, "/never"), (forwarded, "/never"), (buffered, "/never"), (buffered, "/pour")],
)
async def test_a_caller_who_leaves_before_its_answer_started(
    seen: Observed, way: Answer, path: str
) -> None:
    options = {"max_bytes": 1 << 40} if way is buffered else {}
    record = await seen.record(way(seen, path, **options), Caller(leaves_after=0.3))
    assert record.outcome is Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS
    assert record.status == (200 if path == "/pour" else None)
    assert record.exception is None


@unbuffered
@pytest.mark.parametrize("path", ["/silent_after_head", "/silent_mid_body", "/pour"])
async def test_a_caller_who_leaves_in_the_body(seen: Observed, way: Answer, path: str) -> None:
    record = await seen.record(way(seen, path), Caller(leaves_after=0.3))
    assert (record.outcome, record.status) == (Outcome.CALLER_DISCONNECTED_MID_BODY, 200)
    assert record.exception is None
    assert (record.bytes_received > 0) == (path != "/silent_after_head")


@every_way
async def test_disconnect_in_the_last_chunk_is_mid_body(seen: Observed, way: Answer) -> None:
    record = await seen.record(way(seen, "/item?size=9"), Caller(send_fails_after=1))
    assert (record.outcome, record.status) == (Outcome.CALLER_DISCONNECTED_MID_BODY, 200)
    assert (record.exception, record.bytes_received) == (None, 9)


@pytest.mark.parametrize("upload", ["forwarded", "streamed", "buffered"])
async def test_a_caller_who_leaves_in_its_upload(seen: Observed, upload: str) -> None:
    caller = Caller("POST", body=[b"abc", b"def"], body_is_whole=False, leaves_after=0.2)
    if upload == "forwarded":
        caller.scope["headers"] = [(b"transfer-encoding", b"chunked")]
        app = forwarded(seen, "/echo")
    else:
        cls = StreamedResponse if upload == "streamed" else BufferedResponse
        body = Request(caller.scope, caller.receive).stream()
        app = cls(seen.client, seen.get("/echo", "POST", content=body))
    record = await seen.record(app, caller)
    assert (record.outcome, record.status) == (Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS, None)
    assert (record.exception, record.bytes_sent) == (None, 6)


@every_way
@pytest.mark.parametrize("path", ["/never", "/silent_mid_body"])
async def test_a_middleware_that_gives_up_has_cancelled(
    seen: Observed, way: Answer, path: str, loop_name: str
) -> None:
    async def within(scope: Scope, receive: Receive, send: Send) -> None:
        app = way(seen, path)
        if loop_name == "trio":
            with anyio.fail_after(0.3):
                await app(scope, receive, send)
        else:
            async with asyncio.timeout(0.3):
                await app(scope, receive, send)

    with pytest.raises(TimeoutError):
        await Caller().call(within)
    await seen.is_at_rest()
    record = seen.only
    assert (record.outcome, record.exception) == (Outcome.CANCELLED, None)
    assert record.status == (None if path == "/never" else 200)


@every_way
async def test_a_request_that_is_cancelled_while_it_waits_for_a_place(
    seen: Observed, way: Answer
) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(seen.call, streamed(seen, "/never"))
        await aeventually(lambda: seen.upstream.open_exchanges == 1)
        with anyio.move_on_after(0.2):
            await way(seen, "/item")(Caller().scope, Caller().receive, Caller().send)
        record = seen.only
        assert count_open_exchanges(seen.client) == 1
        group.cancel_scope.cancel()
    assert (record.outcome, record.status) == (Outcome.CANCELLED, None)
    assert seen.only.outcome is Outcome.CANCELLED


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
    caller, complete = Caller(), list[bool]()

    def slow(record: ExchangeRecord) -> None:
        complete.append(caller.complete)
        time.sleep(0.5)

    record = await seen.record(way(seen, "/item", observers=[slow]), caller)
    assert complete == [True]
    assert record.duration < 0.5


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


# How many are open.


@every_way
@pytest.mark.parametrize("path", ["/never", "/silent_after_head", "/silent_mid_body"])
async def test_an_open_exchange_is_counted(seen: Observed, way: Answer, path: str) -> None:
    assert count_open_exchanges(seen.client) == 0
    async with anyio.create_task_group() as group:
        group.start_soon(Caller().call, way(seen, path))
        await aeventually(lambda: seen.upstream.open_exchanges == 1)
        assert count_open_exchanges(seen.client) == 1
        if seen.own is not None:
            one = PoolState(open=1, idle=0, connecting=0, waiting=0)
            address = f"http://127.0.0.1:{seen.upstream.port}"
            assert seen.own.pool_state() == dataclasses.replace(one, origins={address: one})
        group.cancel_scope.cancel()
    await seen.is_at_rest()
    assert seen.only.outcome is Outcome.CANCELLED


@every_way
async def test_an_exchange_that_waits_for_a_place_is_counted(seen: Observed, way: Answer) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(Caller().call, way(seen, "/never"))
        await aeventually(lambda: seen.upstream.open_exchanges == 1)
        group.start_soon(Caller().call, way(seen, "/item"))
        await aeventually(lambda: count_open_exchanges(seen.client) == 2)
        if seen.own is not None:
            own = seen.own
            await aeventually(lambda: own.pool_state().waiting == 1)
            state = own.pool_state()
            assert (state.open, state.idle, state.connecting) == (1, 0, 0)
        group.cancel_scope.cancel()
    await seen.is_at_rest()
    assert [record.outcome for record in seen.records] == [Outcome.CANCELLED] * 2
    seen.records.clear()


@pytest.mark.asyncio_only
async def test_pool_state_counts_a_connection_being_made(
    upstream: Upstream,
) -> None:
    async with observing(upstream, OWN) as seen:
        assert seen.own is not None
        own = seen.own
        with full() as url:
            async with anyio.create_task_group() as group:
                group.start_soon(Caller().call, streamed(seen, url))
                await aeventually(lambda: own.pool_state().connecting == 1)
                one = PoolState(open=0, idle=0, connecting=1, waiting=1)
                state = own.pool_state()
                assert state == dataclasses.replace(one, origins={url.removesuffix("/"): one})
                assert count_open_exchanges(seen.client) == 1
                group.cancel_scope.cancel()
            await own.aclose()  # it would serve the next request, and is given up only here
            await aeventually(lambda: own.pool_state().connecting == 0)
        seen.records.clear()


# Routes.


async def test_the_route_is_the_template_and_not_the_path(seen: Observed) -> None:
    async def endpoint(request: Request) -> Response:
        return StreamedResponse(seen.client, seen.get("/item"))

    def sync(request: Request) -> Response:
        return BufferedResponse(seen.client, seen.get("/item"))

    router = APIRouter(prefix="/shop")
    fast = FastAPI()
    fast.add_api_route("/items/{item_id}", endpoint, response_model=None)
    fast.add_api_route("/sync/{item_id}", sync, response_model=None)
    router.add_api_route("/goods/{item_id:int}", endpoint, response_model=None)
    fast.include_router(router, prefix="/v1")
    fast.mount("/api/{tenant}", ReverseProxy())
    star = Starlette(routes=[Route("/things/{name:path}", endpoint), Mount("/sub", fast)])
    for app, path, template in [
        (fast, "/items/7", "/items/{item_id}"),
        (fast, "/sync/7", "/sync/{item_id}"),
        (fast, "/v1/shop/goods/7", "/v1/shop/goods/{item_id:int}"),
        (fast, "/api/ann/item", "/api/{tenant}"),
        (star, "/things/a/b", "/things/{name:path}"),
        (star, "/sub/items/7", "/items/{item_id}"),
    ]:
        caller = Caller()
        caller.scope.update(path=path, raw_path=path.encode(), state={"client": seen.client})
        record = await seen.record(app, caller)
        assert (record.outcome, record.route) == (Outcome.COMPLETED, template), path
    assert (await seen.record(streamed(seen, "/item"))).route is None


async def test_the_host_is_as_in_the_url(seen: Observed) -> None:
    own: list[ExchangeRecord] = []
    for url, host in [
        ("http://upstream.example/a", "upstream.example"),
        ("https://upstream.example:443/a", "upstream.example"),
        ("http://user:secret@upstream.example:8080/a", "upstream.example:8080"),
        ("http://[::1]:8080/a", "[::1]:8080"),
        ("http://b\u00fccher.example/", "xn--bcher-kva.example"),
    ]:
        client = answering(b"x").client()
        request = client.build_request("GET", url)
        await Caller().call(StreamedResponse(client, request, observers=[own.append]))
        assert own.pop().host == host


# docs/exchange-records.md


def page() -> str:
    return (ROOT / "docs/exchange-records.md").read_text()


@pytest.fixture(scope="module")
def documented() -> Iterator[dict[str, Any]]:
    """What the blocks of code in the page define, run one after the other."""
    with served(importlib.import_module("examples.upstream").app) as url:
        names: dict[str, Any] = {"__name__": "records"}
        for code in re.findall(r"```python\n(.*?)```", page(), re.S):
            exec(code.replace("http://127.0.0.1:9000", url), names)
        yield names


def test_the_page_has_each_outcome_and_each_field() -> None:
    outcomes = re.findall(r"^- `(\w+)`: ", page(), re.M)
    assert sorted(outcomes) == sorted(Outcome)
    (sentence,) = re.findall(r"^A record has (.*?)\.", page(), re.M | re.S)
    fields = [field.name for field in dataclasses.fields(ExchangeRecord)]
    assert re.findall(r"`(\w+)`", sentence) == fields


def test_the_documented_observer_counts_outcomes(documented: dict[str, Any]) -> None:
    with (
        served(documented["app"]) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as caller,
    ):
        assert caller.get("/api/item").status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            caller.get("/api/dies")
        until(lambda: documented["outcomes"].total() == 2)
    assert {outcome for _, outcome in documented["outcomes"]} == {"completed", "body_failed"}
