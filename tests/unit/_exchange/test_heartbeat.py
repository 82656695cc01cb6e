"""Comments in a silent event stream: between events only, and only in event streams."""

import gzip
import itertools
import re
from collections.abc import AsyncIterator
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_upstream import (
    BufferedResponse,
    ExchangeRecord,
    Outcome,
    ReverseProxy,
    StreamedResponse,
    UpstreamTimeout,
)
from asgi_upstream._exchange.heartbeat import COMMENT, EventBoundaries, HeartbeatBody
from asgi_upstream.testing import Upstream
from tests.support.asgi import Caller, InMemoryUpstream, RawHeaders, answering, collect_garbage
from tests.support.flavor import AsyncioTransport, httpx

pytestmark = pytest.mark.virtual_time

SSE = [("content-type", "text/event-stream; charset=utf-8")]
BEAT = 0.01  # seconds


# --- where an event ends -------------------------------------------------------------------


def between_events(*chunks: bytes) -> bool:
    boundaries = EventBoundaries()
    for chunk in chunks:
        boundaries.feed(chunk)
    return boundaries.between_events


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_comment_is_allowed_only_after_an_empty_line(end: bytes) -> None:
    event = b"event: a" + end + b"data: 1" + end + end
    assert between_events()
    assert between_events(event)
    assert between_events(event, b"id: 2" + end + end)
    for length in range(1, len(event) - 1 if end != b"\r\n" else len(event) - 2):
        assert not between_events(event, event[:length])


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_comment_line_does_not_begin_an_event(end: bytes) -> None:
    assert between_events(b": ping" + end)
    assert not between_events(b": pi")
    assert not between_events(b"data: 1" + end + b": ping" + end)


def test_byte_order_mark_is_not_a_line() -> None:
    assert between_events(b"\xef\xbb", b"\xbf")
    assert not between_events(b"\xef\xbb")
    assert between_events(b"\xef\xbb\xbf: ping\n")
    assert between_events(b"\xef\xbb\xbf\n")


lines = st.lists(st.sampled_from([b"data: x", b": c", b"", b"id", b":"]), max_size=8)
ends = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(lines=lines, end=ends, rest=st.sampled_from([b"", b"d", b":"]), data=st.data())
def test_boundary_does_not_depend_on_where_chunks_are_cut(
    lines: list[bytes], end: bytes, rest: bytes, data: st.DataObject
) -> None:
    stream = b"".join(line + end for line in lines) + rest
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    bounds = [0, *sorted(places), len(stream)]
    chunks = [stream[a:b] for a, b in itertools.pairwise(bounds)]
    in_event = False
    for line in lines:
        in_event = bool(line) and (in_event or not line.startswith(b":"))
    assert between_events(*chunks) == (not in_event and not rest)


# --- the comments --------------------------------------------------------------------------


class Gated(AsyncIterator[bytes]):
    """Yields each chunk only after so many comments."""

    def __init__(self, *steps: bytes | int) -> None:
        self._steps = list(steps)
        self.beats = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while self._steps:
            step = self._steps[0]
            if isinstance(step, int):
                self._steps[0] = step - 1
                if step:
                    await anyio.sleep_forever()
                del self._steps[0]
            else:
                return self._steps.pop(0)  # type: ignore[return-value]
        raise StopAsyncIteration


async def beaten(*steps: bytes | int) -> bytes:
    with anyio.fail_after(60):
        return b"".join([chunk async for chunk in HeartbeatBody(Gated(*steps), BEAT)])


@pytest.mark.anyio
async def test_silence_between_events_is_filled() -> None:
    assert await beaten(2, b"data: 1\n\n", 1, b"data: 2\n\n") == (
        COMMENT * 2 + b"data: 1\n\n" + COMMENT + b"data: 2\n\n"
    )


@pytest.mark.anyio
@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
async def test_silence_within_an_event_is_not_filled(end: bytes) -> None:
    event = b"data: 1" + end + end
    for length in range(1, len(event) - len(end)):
        assert await beaten(event[:length], 2, event[length:]) == event


@pytest.mark.anyio
async def test_byte_order_mark_after_a_comment_is_dropped() -> None:
    bom = b"\xef\xbb\xbf"
    assert await beaten(1, bom + b"data: 1\n\n") == COMMENT + b"data: 1\n\n"
    assert await beaten(1, bom[:1], 1, bom[1:] + b"data: 1\n\n") == COMMENT + b"data: 1\n\n"
    assert await beaten(1, bom[:2]) == COMMENT + bom[:2]
    assert await beaten(bom, 1, b"data: 1\n\n") == bom + COMMENT + b"data: 1\n\n"


# --- in an exchange ------------------------------------------------------------------------


async def call(
    *steps: bytes | float | Exception,
    headers: RawHeaders = SSE,
    method: str = "GET",
    **options: Any,
) -> tuple[Caller, ExchangeRecord]:
    records: list[ExchangeRecord] = []
    upstream = answering(*steps, headers=headers)
    client = upstream.client()
    response = StreamedResponse(
        client, client.build_request(method, "/"), observers=[records.append], **options
    )
    caller = Caller(method)
    try:
        with anyio.fail_after(60):
            await caller.call(response)
    finally:
        assert upstream.open == 0
        collect_garbage()
    return caller, records[0]


def without_comments(caller: Caller) -> bytes:
    return caller.body.replace(COMMENT, b"")


@pytest.mark.anyio
async def test_event_stream_with_heartbeat_is_otherwise_unchanged() -> None:
    headers = [*SSE, ("content-length", "18"), ("x-own", "1"), ("etag", '"a"')]
    caller, record = await call(
        b"data: 1\n\n", 0.1, b"data: 2\n\n", headers=headers, heartbeat=BEAT
    )
    assert re.fullmatch(rb"data: 1\n\n(: heartbeat\n\n)+data: 2\n\n", caller.body)
    assert caller.complete
    assert caller.values("content-length") == []
    assert caller.values("x-own") == ["1"]
    assert caller.values("content-type") == [SSE[0][1]]
    assert record.outcome is Outcome.COMPLETED
    assert record.bytes_received == 18


@pytest.mark.anyio
@pytest.mark.parametrize("media_type", ["text/plain", "application/x-ndjson", "text/event-streams"])
async def test_other_media_types_are_left_alone(media_type: str) -> None:
    coded = gzip.compress(b"x" * 50)
    headers = [("content-type", media_type), ("content-encoding", "gzip")]
    headers.append(("content-length", str(len(coded))))
    caller, _ = await call(coded[:9], 0.1, coded[9:], headers=headers, heartbeat=BEAT)
    assert caller.body == coded
    assert caller.values("content-length") == [str(len(coded))]
    assert caller.values("content-encoding") == ["gzip"]


@pytest.mark.anyio
async def test_compressed_event_stream_is_decoded() -> None:
    coded = gzip.compress(b"data: 1\n\n")
    headers = [*SSE, ("content-encoding", "gzip")]
    caller, _ = await call(0.1, coded[:12], 0.05, coded[12:], headers=headers, heartbeat=BEAT)
    assert without_comments(caller) == b"data: 1\n\n"
    assert caller.body.startswith(COMMENT)
    assert caller.values("content-encoding") == []


async def to_events(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        with anyio.move_on_after(60):  # a scope that is open across the yields
            async for chunk in body:
                yield b"data: " + chunk + b"\n\n"
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_heartbeat_comes_after_the_transform() -> None:
    caller, record = await call(
        b"1",
        0.1,
        b"2",
        headers=[("content-type", "application/x-ndjson")],
        transform=to_events,
        media_type="text/event-stream",
        heartbeat=BEAT,
    )
    assert without_comments(caller) == b"data: 1\n\ndata: 2\n\n"
    assert COMMENT in caller.body
    assert record.outcome is Outcome.COMPLETED


@pytest.mark.anyio
async def test_failing_transform_fails_as_without_heartbeat() -> None:
    async def fail(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield await anext(body)
        raise LookupError("mine")

    records: list[ExchangeRecord] = []
    upstream = answering(b"data: 1\n\n", 5, headers=SSE)
    client = upstream.client()
    request = client.build_request("GET", "/")
    with pytest.raises(LookupError, match="mine"):
        await Caller().call(
            StreamedResponse(
                client, request, transform=fail, heartbeat=60, observers=[records.append]
            )
        )
    assert upstream.open == 0
    assert records[0].outcome is Outcome.TRANSFORM_FAILED


@pytest.mark.anyio
async def test_stream_error_comes_after_the_comments() -> None:
    caller, record = await call(
        b"data: 1\n\n",
        0.1,
        httpx.ReadError("gone"),
        heartbeat=BEAT,
        on_stream_error=lambda exc: b"event: error\n\n",
    )
    assert without_comments(caller) == b"data: 1\n\nevent: error\n\n"
    assert record.outcome is Outcome.BODY_FAILED


@pytest.mark.anyio
async def test_deadline_ends_a_stream_that_only_beats() -> None:
    caller, record = await call(
        b"data: 1\n\n",
        60,
        heartbeat=BEAT,
        deadline=0.2,
        on_stream_error=lambda exc: type(exc).__name__.encode(),
    )
    assert without_comments(caller) == b"data: 1\n\n" + UpstreamTimeout.__name__.encode()
    assert COMMENT in caller.body
    assert record.outcome is Outcome.DEADLINE


@pytest.mark.anyio
async def test_caller_who_disconnects_ends_the_heartbeat() -> None:
    upstream = answering(60, headers=SSE)
    client = upstream.client()
    response = StreamedResponse(client, client.build_request("GET", "/"), heartbeat=BEAT)
    caller = Caller(leaves_at_body=True)
    with anyio.fail_after(60):
        await caller.call(response)
    assert upstream.open == 0
    assert set(caller.body.split(b"\n\n")) == {b": heartbeat", b""}


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["HEAD"])
async def test_response_without_body_has_no_comment(method: str) -> None:
    caller, _ = await call(headers=SSE, method=method, heartbeat=BEAT)
    assert caller.body == b""


@pytest.mark.real_time
@pytest.mark.anyio
@pytest.mark.parametrize("fast", [pytest.param(True, marks=pytest.mark.asyncio_only), False])
async def test_heartbeat_works_on_a_real_transport(fast: bool) -> None:
    transport = AsyncioTransport() if fast else httpx.AsyncHTTPTransport()
    with Upstream() as upstream:
        upstream.get("/").chunks(b"data: 1\n\n", 0.2, b"data: 2\n\n", headers=dict(SSE))
        async with httpx.AsyncClient(transport=transport, base_url=upstream.url) as client:
            caller = Caller()
            request = client.build_request("GET", "/")
            await caller.call(StreamedResponse(client, request, heartbeat=BEAT))
    assert without_comments(caller) == b"data: 1\n\ndata: 2\n\n"
    assert COMMENT in caller.body


@pytest.mark.parametrize("value", [0, -1, "1", float("nan")])
def test_heartbeat_that_makes_no_sense_is_refused(value: Any) -> None:
    client = InMemoryUpstream.client(answering())
    request = client.build_request("GET", "/")
    with pytest.raises(ValueError, match="heartbeat="):
        StreamedResponse(client, request, heartbeat=value)
    with pytest.raises(ValueError, match="heartbeat="):
        ReverseProxy(heartbeat=value)
    with pytest.raises(TypeError, match="has no heartbeat"):
        BufferedResponse(client, request, heartbeat=1)
