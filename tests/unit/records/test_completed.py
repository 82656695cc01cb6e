"""What the record of a complete exchange contains."""

import dataclasses
import gzip
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from asgi_upstream import BufferedResponse, ExchangeRecord, Outcome, StreamedResponse
from tests.support.asgi import Caller
from tests.support.flavor import httpx
from tests.support.recorded import (
    Answer,
    Observed,
    buffered,
    every_way,
    forwarded,
    observing,
    recorded_tests,
    responses,
    streamed,
    unbuffered,
)
from tests.support.upstream import Upstream

pytestmark = recorded_tests


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
