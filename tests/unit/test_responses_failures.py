"""Failures of the upstream, on_stream_error and deadlines."""

import gzip
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from asgi_upstream import (
    BufferedResponse,
    PoolExhausted,
    UpstreamConnectError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from tests.support.asgi import Caller, answering
from tests.support.flavor import httpx
from tests.support.responses import AnyClass, answer_of, both, called, failing

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


@both
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (httpx.ConnectError("refused"), UpstreamConnectError),
        (httpx.ProxyError("refused"), UpstreamConnectError),
        (httpx.RemoteProtocolError("not HTTP"), UpstreamProtocolError),
        (httpx.ReadError("reset"), UpstreamProtocolError),
        (httpx.ReadTimeout("slow"), UpstreamTimeout),
        (httpx.ConnectTimeout("slow"), UpstreamTimeout),
        (httpx.PoolTimeout("full"), PoolExhausted),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_a_failure_before_the_headers_is_a_plain_upstream_error(
    cls: AnyClass,
    theirs: Exception,
    ours: type[UpstreamError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caller, error = await failing(answering(failing=theirs), ours, cls)
    assert error.__cause__ is theirs
    assert caller.messages == []
    (record,) = [r for r in caplog.records if r.levelno >= logging.INFO]
    assert record.name == "asgi_upstream"
    assert record.levelno == logging.WARNING
    assert type(theirs).__name__ in record.getMessage()
    assert "upstream.example" in record.getMessage()


@both
async def test_an_app_answers_a_failure_without_a_handler(cls: AnyClass) -> None:
    async def endpoint(request: Request) -> Response:
        return answer_of(answering(failing=httpx.PoolTimeout("full")), cls)

    caller = await Caller().call(Starlette(routes=[Route("/", endpoint)]))
    assert caller.status == 503
    assert caller.values("retry-after") == ["1"]
    assert caller.body == PoolExhausted.detail.encode()


@both
async def test_a_handler_of_the_app_sees_a_plain_upstream_error(cls: AnyClass) -> None:
    seen: list[Exception] = []

    async def endpoint(request: Request) -> Response:
        return answer_of(answering(failing=httpx.ReadTimeout("slow")), cls)

    async def handler(request: Request, exc: Exception) -> Response:
        seen.append(exc)
        return PlainTextResponse("own words", 599)

    app = Starlette(routes=[Route("/", endpoint)], exception_handlers={HTTPException: handler})
    caller = await Caller().call(app)
    assert (caller.status, caller.body) == (599, b"own words")
    assert [type(exc) for exc in seen] == [UpstreamTimeout]


async def test_an_upstream_that_dies_cuts_the_caller_off(caplog: pytest.LogCaptureFixture) -> None:
    death = httpx.ReadError("reset")
    caller, error = await failing(answering(b"half", death), UpstreamProtocolError)
    assert error.__cause__ is death
    assert caller.body == b"half"
    assert not caller.complete
    (record,) = [r for r in caplog.records if r.levelno >= logging.INFO]
    assert "ReadError" in record.getMessage()
    assert "upstream.example" in record.getMessage()


async def test_an_upstream_that_dies_is_a_clean_error_when_buffered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream = answering(b"half", httpx.ReadError("reset"))
    caller, _ = await failing(upstream, UpstreamProtocolError, BufferedResponse)
    assert caller.messages == []
    assert len([r for r in caplog.records if r.levelno >= logging.INFO]) == 1


async def test_an_upstream_that_dies_after_its_last_byte_cuts_off_too() -> None:
    """The last byte of a known length is kept back until the upstream ended well."""
    caller, _ = await failing(
        answering(b"12345", httpx.ReadError("reset"), headers=[("content-length", "5")]),
        UpstreamProtocolError,
    )
    assert not caller.complete


async def test_abort_message_unknown_to_the_server_is_harmless() -> None:
    """A server that fails on unknown messages gets no other exception than the upstream's."""
    told: list[str] = []

    class Lenient(Caller):
        async def send(self, message: Any) -> None:
            told.append(message["type"])
            if "abort" not in message["type"]:
                await super().send(message)

    caller = Lenient()
    with pytest.raises(UpstreamProtocolError):
        await caller.call(answer_of(answering(b"half", httpx.ReadError("reset"))))
    assert not caller.complete
    assert told[-1] != "http.response.body" or caller.messages[-1]["more_body"]


async def test_an_error_frame_ends_the_body_of_an_upstream_that_dies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[Exception] = []
    death = httpx.ReadError("reset")

    def frame(exc: Exception) -> bytes:
        seen.append(exc)
        return b"event: error\n\n"

    upstream = answering(b"data: 1\n\n", death, headers=[("content-length", "500")])
    caller = await called(upstream, on_stream_error=frame)
    assert caller.body == b"data: 1\n\nevent: error\n\n"
    assert caller.complete
    assert caller.values("content-length") == []
    assert [type(exc) for exc in seen] == [UpstreamProtocolError]
    assert seen[0].__cause__ is death
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


async def test_transform_that_raises_ends_with_logged_error_frame(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            yield chunk
            raise LookupError("own")

    caller = await called(
        answering(b"a", b"b"), transform=fails, on_stream_error=lambda exc: repr(exc).encode()
    )
    assert caller.body == b"aLookupError('own')"
    assert caller.complete
    (line,) = [r for r in caplog.records if r.name == "asgi_upstream"]
    assert line.levelno == logging.ERROR
    assert line.exc_info is not None
    assert isinstance(line.exc_info[1], LookupError)


async def test_an_error_frame_after_the_deadline_tells_of_a_timeout() -> None:
    caller = await called(
        answering(b"a", 30.0),
        deadline=0.1,
        on_stream_error=lambda exc: type(exc).__name__.encode(),
    )
    assert caller.body == b"aUpstreamTimeout"
    assert caller.complete


async def test_error_frame_in_a_compressed_body_can_be_read() -> None:
    coded = gzip.compress(os.urandom(1000))
    caller = await called(
        answering(coded[:500], httpx.ReadError("reset"), headers=[("content-encoding", "gzip")]),
        on_stream_error=lambda exc: b"the frame",
    )
    assert caller.body.endswith(b"the frame")
    assert caller.values("content-encoding") == []


async def test_an_error_frame_is_not_for_failures_before_the_start() -> None:
    upstream = answering(failing=httpx.ConnectError("refused"))
    caller, _ = await failing(upstream, UpstreamConnectError, on_stream_error=lambda exc: b"frame")
    assert caller.messages == []


async def test_a_body_that_ends_well_has_no_error_frame() -> None:
    upstream = answering(b"all", headers=[("content-length", "3")])
    caller = await called(upstream, on_stream_error=lambda exc: b"frame")
    assert caller.body == b"all"
    assert caller.complete


@both
async def test_a_deadline_before_the_headers_is_a_504(
    cls: AnyClass, caplog: pytest.LogCaptureFixture
) -> None:
    caller, error = await failing(answering(b"x", before=30), UpstreamTimeout, cls, deadline=0.1)
    assert isinstance(error, UpstreamTimeout)
    assert error.status_code == 504
    assert caller.messages == []
    (record,) = [r for r in caplog.records if r.levelno >= logging.INFO]
    assert record.getMessage() == (
        "upstream upstream.example:8765 failed: UpstreamTimeout: the deadline of 0.1 s passed (GET)"
    )


async def test_a_deadline_in_the_body_cuts_the_caller_off() -> None:
    caller, _ = await failing(answering(b"a", 30.0), UpstreamTimeout, deadline=0.1)
    assert caller.body == b"a"
    assert not caller.complete


async def test_a_deadline_in_the_body_is_a_504_when_buffered() -> None:
    caller, _ = await failing(
        answering(b"a", 30.0), UpstreamTimeout, BufferedResponse, deadline=0.1
    )
    assert caller.messages == []


async def test_a_deadline_counts_the_callers_reading() -> None:
    class SlowCaller(Caller):
        async def send(self, message: Any) -> None:
            if message.get("body"):
                await anyio.sleep(30)
            await super().send(message)

    upstream = answering(b"a", b"b")
    with anyio.fail_after(60), pytest.raises(UpstreamTimeout):
        await SlowCaller().call(answer_of(upstream, deadline=0.1))
    assert upstream.open == 0


@both
async def test_an_exchange_within_its_deadline_is_not_disturbed(cls: AnyClass) -> None:
    upstream = answering(b"a", 0.01, b"b")
    caller = await called(upstream, cls, deadline=5)
    assert caller.body == b"ab"
    assert caller.complete


@both
async def test_a_deadline_of_on_response_is_the_same(cls: AnyClass) -> None:
    async def slow(upstream: httpx.Response) -> None:
        await anyio.sleep(30)

    caller, _ = await failing(answering(b"a"), UpstreamTimeout, cls, deadline=0.1, on_response=slow)
    assert caller.messages == []
