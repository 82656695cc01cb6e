"""How the upstream's failure is recorded."""

import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

from asgi_upstream import (
    BufferedResponse,
    ExchangeRecord,
    Outcome,
    PoolExhausted,
    StreamedResponse,
    UpstreamBodyTooLarge,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from tests.support.asgi import Caller
from tests.support.flavor import httpx
from tests.support.ports import open_full_port
from tests.support.recorded import (
    Answer,
    Observed,
    buffered,
    every_way,
    forwarded,
    recorded_tests,
    responses,
    streamed,
    unbuffered,
)
from tests.support.servers import free_port
from tests.support.upstream import Upstream, untrusted_upstream
from tests.support.waiting import aeventually

pytestmark = recorded_tests


@pytest.fixture(scope="module")
def untrusted() -> Iterator[Upstream]:
    with untrusted_upstream() as upstream:
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


@responses
async def test_a_connection_that_takes_too_long_is_connect_timeout(
    seen: Observed, way: Answer
) -> None:
    with open_full_port() as port:
        url = f"http://127.0.0.1:{port}/"
        record = await seen.record(way(seen, url, timeout=httpx.Timeout(60, connect=0.2)))
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
    async def call(seconds: float) -> ExchangeRecord:
        timeout = httpx.Timeout(60, read=seconds)
        return await seen.record(way(seen, f"/{path}", timeout=timeout))

    record = await seen.record_with_growing_limit(
        call, lambda record: (record.status, record.bytes_received) == (status, received)
    )
    assert (record.outcome, record.status) == (Outcome.READ_TIMEOUT, status)
    assert (record.bytes_received, type(record.exception)) == (received, httpx.ReadTimeout)


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_bytes_that_were_sent_before_the_silence_are_counted(
    seen: Observed, cls: Any
) -> None:
    request = seen.get("/never", "POST", content=b"12345", timeout=httpx.Timeout(60, read=0.2))
    record = await seen.record(cls(seen.client, request))
    assert (record.outcome, record.bytes_sent) == (Outcome.READ_TIMEOUT, 5)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(1 << 20)


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_an_upload_that_is_not_taken_is_write_timeout(seen: Observed, cls: Any) -> None:
    with deaf() as url:
        timeout = httpx.Timeout(60, write=0.2)
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
    async def call(seconds: float) -> ExchangeRecord:
        record = await seen.record(way(seen, f"/{path}", deadline=seconds))
        assert record.duration >= seconds
        return record

    record = await seen.record_with_growing_limit(call, lambda record: record.status == status)
    assert (record.outcome, record.status) == (Outcome.DEADLINE, status)
    assert isinstance(record.exception, UpstreamTimeout)


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
        app = way(seen, "/item", timeout=httpx.Timeout(60, pool=0.2))
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
