"""A `transform` may cancel a read of the body and go on: nothing is lost, and nothing is left."""

import asyncio
import gzip
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgi_upstream import ExchangeRecord, Outcome, StreamedResponse
from asgi_upstream.testing import Upstream
from tests.support.asgi import Caller, InMemoryUpstream, collect_garbage
from tests.support.flavor import AsyncioTransport, httpx

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

CHUNKS = [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
Cancel = Callable[[Callable[[], Awaitable[bytes]]], Awaitable[bytes | None]]


async def cancel_scope(read: Callable[[], Awaitable[bytes]]) -> bytes | None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        return await read()
    return None


async def move_on_after(read: Callable[[], Awaitable[bytes]]) -> bytes | None:
    with anyio.move_on_after(0.001):
        return await read()
    return None


async def wait_for(read: Callable[[], Awaitable[bytes]]) -> bytes | None:
    try:
        return await asyncio.wait_for(read(), 0.001)
    except TimeoutError:
        return None


async def asyncio_timeout(read: Callable[[], Awaitable[bytes]]) -> bytes | None:
    try:
        async with asyncio.timeout(0.001):
            return await read()
    except TimeoutError:
        return None


CANCELS = [
    cancel_scope,
    move_on_after,
    pytest.param(wait_for, marks=pytest.mark.asyncio_only),
    pytest.param(asyncio_timeout, marks=pytest.mark.asyncio_only),
]


class GatedBody(httpx.AsyncByteStream):
    """Yields the next chunk only after `open_gate`, from a generator, as httpx's transport does."""

    def __init__(self, chunks: list[bytes], failure: Exception | None = None) -> None:
        self._chunks = chunks
        self._failure = failure
        self._gate = anyio.Event()
        self._iterator = self._iterate()
        self.reads = 0

    def open_gate(self) -> None:
        self._gate.set()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterator

    async def aclose(self) -> None:
        await self._iterator.aclose()

    async def _iterate(self) -> AsyncGenerator[bytes]:
        for chunk in self._chunks:
            self.reads += 1
            await self._gate.wait()
            self._gate = anyio.Event()
            yield chunk
        if self._failure is not None:
            raise self._failure


def patient(cancel: Cancel, body: GatedBody) -> Callable[[AsyncIterator[bytes]], Any]:
    """Return a transform that cancels each read once before the chunk is there."""

    async def transform(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        while True:
            try:
                chunk = await cancel(chunks.__anext__)
                body.open_gate()
                yield b": wait\n\n" if chunk is None else chunk
                if chunk is None:
                    yield await anext(chunks)
            except StopAsyncIteration:
                return

    return transform


async def call(
    body: httpx.AsyncByteStream, *, headers: dict[str, str] | None = None, **options: Any
) -> tuple[Caller, list[ExchangeRecord]]:
    records: list[ExchangeRecord] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=headers, stream=body)

    upstream = InMemoryUpstream(answer)
    client = upstream.client()
    response = StreamedResponse(
        client, client.build_request("GET", "/"), observers=[records.append], **options
    )
    caller = Caller()
    try:
        with anyio.fail_after(60):
            await caller.call(response)
    finally:
        assert upstream.open == 0
        collect_garbage()
    return caller, records


def without_waits(caller: Caller) -> bytes:
    return caller.body.replace(b": wait\n\n", b"")


@pytest.mark.parametrize("coding", [None, "gzip"])
@pytest.mark.parametrize("cancel", CANCELS)
async def test_cancelled_read_loses_nothing(cancel: Cancel, coding: str | None) -> None:
    content = b"".join(CHUNKS)
    coded = gzip.compress(content)
    chunks = CHUNKS if coding is None else [coded[:15], coded[15:30], coded[30:]]
    body = GatedBody(chunks)
    headers = {} if coding is None else {"content-encoding": coding}
    caller, [record] = await call(body, headers=headers, transform=patient(cancel, body))
    assert without_waits(caller) == content
    assert b": wait" in caller.body
    assert caller.complete
    assert record.outcome is Outcome.COMPLETED
    assert record.bytes_received == sum(map(len, chunks))


async def test_failure_after_cancelled_read_is_no_clean_end() -> None:
    body = GatedBody(CHUNKS, httpx.ReadError("gone"))
    with pytest.raises(Exception, match="502"):
        await call(body, transform=patient(cancel_scope, body))
    body = GatedBody(CHUNKS, httpx.ReadError("gone"))
    caller, [record] = await call(
        body,
        transform=patient(cancel_scope, body),
        on_stream_error=lambda exc: b"event: error\n\n",
    )
    assert without_waits(caller) == b"".join(CHUNKS) + b"event: error\n\n"
    assert record.outcome is Outcome.BODY_FAILED


async def test_next_read_is_not_started_before_it_is_asked_for() -> None:
    body = GatedBody(CHUNKS)

    async def transform(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        await cancel_scope(chunks.__anext__)
        body.open_gate()
        yield await anext(chunks)
        await anyio.lowlevel.checkpoint()
        assert body.reads == 1

    caller, _ = await call(body, transform=transform)
    assert caller.body == CHUNKS[0]


async def test_transform_that_stops_leaves_no_read_behind() -> None:
    body = GatedBody(CHUNKS)

    async def transform(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        await cancel_scope(chunks.__anext__)
        yield b"enough"

    caller, [record] = await call(body, transform=transform)
    assert caller.body == b"enough"
    assert record.outcome is Outcome.COMPLETED


async def test_two_reads_at_once_are_an_error() -> None:
    body = GatedBody(CHUNKS)
    failures: list[Exception] = []

    async def read(chunks: AsyncIterator[bytes]) -> None:
        try:
            await anext(chunks)
        except RuntimeError as exc:
            failures.append(exc)
            body.open_gate()

    async def transform(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async with anyio.create_task_group() as group:
            group.start_soon(read, chunks)
            group.start_soon(read, chunks)
        yield b"x"

    await call(body, transform=transform)
    assert len(failures) == 1


async def test_caller_who_disconnects_ends_the_cancelled_read() -> None:
    body = GatedBody(CHUNKS)
    caller = Caller(leaves_at_body=True)

    async def transform(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        await cancel_scope(chunks.__anext__)
        yield b"first"
        await anext(chunks)

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=body)

    upstream = InMemoryUpstream(answer)
    client = upstream.client()
    with anyio.fail_after(60):
        await caller.call(
            StreamedResponse(client, client.build_request("GET", "/"), transform=transform)
        )
    assert upstream.open == 0
    assert not caller.complete


@pytest.mark.real_time
@pytest.mark.parametrize(
    "on_response", [None, pytest.param(lambda response: None, marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("cancel", CANCELS)
@pytest.mark.parametrize("fast", [pytest.param(True, marks=pytest.mark.asyncio_only), False])
async def test_cancelled_read_of_a_real_transport_loses_nothing(
    fast: bool, cancel: Cancel, on_response: Any
) -> None:
    with Upstream() as upstream:
        upstream.get("/").chunks(CHUNKS[0], 0.2, CHUNKS[1], 0.2, CHUNKS[2])

        async def transform(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            while True:
                try:
                    chunk = await cancel(chunks.__anext__)
                except StopAsyncIteration:
                    return
                if chunk is None:
                    await anyio.sleep(0.02)
                yield b": wait\n\n" if chunk is None else chunk

        transport = AsyncioTransport() if fast else httpx.AsyncHTTPTransport()
        async with httpx.AsyncClient(transport=transport, base_url=upstream.url) as client:
            records: list[ExchangeRecord] = []
            caller = Caller()
            await caller.call(
                StreamedResponse(
                    client,
                    client.build_request("GET", "/"),
                    transform=transform,
                    on_response=on_response,
                    observers=[records.append],
                )
            )
    assert without_waits(caller) == b"".join(CHUNKS)
    assert b": wait" in caller.body
    assert [record.outcome for record in records] == [Outcome.COMPLETED]
