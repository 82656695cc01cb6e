"""Calls of your own: `fetch`."""

import gzip
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.requests import Request

from asgi_upstream import (
    ExchangeRecord,
    Outcome,
    PoolExhausted,
    UpstreamBodyTooLarge,
    UpstreamConnectError,
    UpstreamProtocolError,
    UpstreamTimeout,
    count_open_exchanges,
    fetch,
    forward_request,
)
from asgi_upstream.testing import Upstream
from tests.support.asgi import Caller, InMemoryUpstream, answering
from tests.support.flavor import AsyncioTransport, httpx
from tests.support.marks import ignore_httpcore_generators

pytestmark = [
    pytest.mark.virtual_time,
    pytest.mark.anyio,
    ignore_httpcore_generators,
]


async def fetched(
    upstream: InMemoryUpstream, **options: Any
) -> tuple[httpx.Response, ExchangeRecord]:
    records: list[ExchangeRecord] = []
    client = upstream.client()
    try:
        with anyio.fail_after(60):
            response = await fetch(
                client, client.build_request("GET", "/"), observers=[records.append], **options
            )
    finally:
        assert upstream.open == 0
        assert count_open_exchanges(client) == 0
    return response, records[0]


async def failing(
    upstream: InMemoryUpstream, error: type[Exception], **options: Any
) -> tuple[Exception, ExchangeRecord]:
    records: list[ExchangeRecord] = []
    client = upstream.client()
    with anyio.fail_after(60), pytest.raises(error) as caught:
        await fetch(client, client.build_request("GET", "/"), observers=[records.append], **options)
    assert type(caught.value) is error
    assert upstream.open == 0
    assert count_open_exchanges(client) == 0
    return caught.value, records[0]


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_fetch_returns_a_response_that_is_read(status: int) -> None:
    upstream = answering(b'{"a":', b"1}", status=status, headers=[("x-own", "1")])
    response, record = await fetched(upstream)
    assert (response.status_code, response.json()) == (status, {"a": 1})
    assert response.headers["x-own"] == "1"
    assert response.is_closed
    assert response.elapsed.total_seconds() >= 0
    assert response.request.url.path == "/"
    assert (record.outcome, record.status) == (Outcome.COMPLETED, status)
    assert record.bytes_received == 7


async def test_fetch_decodes_the_body() -> None:
    coded = gzip.compress(b"text " * 9)
    upstream = answering(coded[:9], coded[9:], headers=[("content-encoding", "gzip")])
    response, record = await fetched(upstream)
    assert response.text == "text " * 9
    assert record.bytes_received == len(coded)


async def test_fetch_leaves_a_part_of_a_compressed_body_alone() -> None:
    upstream = answering(b"\x1f\x8b\x08", status=206, headers=[("content-encoding", "gzip")])
    response, _ = await fetched(upstream)
    assert response.content == b"\x1f\x8b\x08"


async def test_fetch_asks_only_for_codings_that_can_be_decoded() -> None:
    upstream = answering(b"x")
    client = upstream.client()
    headers = {"accept-encoding": "compress, gzip", "range": "bytes=0-1"}
    request = client.build_request("GET", "/", headers=headers)
    response = await fetch(client, request)
    assert upstream.requests[0].headers["accept-encoding"] == "gzip"
    assert upstream.requests[0].headers["range"] == "bytes=0-1"
    assert response.request is request


@pytest.mark.parametrize(
    ("failure", "error", "outcome"),
    [
        (httpx.ConnectError(""), UpstreamConnectError, Outcome.CONNECT_FAILED),
        (httpx.ConnectTimeout(""), UpstreamTimeout, Outcome.CONNECT_TIMEOUT),
        (httpx.ReadTimeout(""), UpstreamTimeout, Outcome.READ_TIMEOUT),
        (httpx.PoolTimeout(""), PoolExhausted, Outcome.POOL_EXHAUSTED),
        (httpx.RemoteProtocolError(""), UpstreamProtocolError, Outcome.PROTOCOL_FAILED),
    ],
)
async def test_fetch_raises_upstream_errors(
    failure: Exception,
    error: type[Exception],
    outcome: Outcome,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raised, record = await failing(answering(failing=failure), error)
    assert raised.__cause__ is failure
    assert record.outcome is outcome
    assert [line.levelname for line in caplog.records if "failed" in line.message] == ["WARNING"]


async def test_fetch_fails_if_the_body_breaks_off() -> None:
    upstream = answering(b"abc", httpx.ReadError("gone"))
    _, record = await failing(upstream, UpstreamProtocolError)
    assert record.outcome is Outcome.BODY_FAILED
    assert record.bytes_received == 3


@pytest.mark.parametrize(
    "headers", [[], [("content-encoding", "gzip")]], ids=["identity", "compressed"]
)
async def test_fetch_limits_the_body(headers: list[tuple[str, str]]) -> None:
    body = gzip.compress(bytes(1000)) if headers else bytes(1000)
    upstream = answering(body, headers=headers)
    _, record = await failing(upstream, UpstreamBodyTooLarge, max_bytes=999)
    assert record.outcome is Outcome.TOO_LARGE
    response, _ = await fetched(answering(body, headers=headers), max_bytes=1000)
    assert len(response.content) == 1000


@pytest.mark.parametrize("where", ["head", "body"])
async def test_fetch_ends_at_its_deadline(where: str) -> None:
    upstream = answering(60) if where == "body" else answering(before=60)
    _, record = await failing(upstream, UpstreamTimeout, deadline=0.05)
    assert record.outcome is Outcome.DEADLINE


async def test_deadline_ends_a_body_that_never_waits() -> None:
    class Endless(httpx.AsyncByteStream):
        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            await anyio.lowlevel.checkpoint()
            return b""

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Endless())

    upstream = InMemoryUpstream(answer)
    client = upstream.client()
    with anyio.fail_after(60), pytest.raises(UpstreamTimeout):
        await fetch(client, client.build_request("GET", "/"), deadline=0.05)


async def test_fetch_that_is_cancelled_closes_and_records() -> None:
    upstream = answering(60)
    records: list[ExchangeRecord] = []
    client = upstream.client()
    request = client.build_request("GET", "/")
    with anyio.move_on_after(0.05) as scope:
        await fetch(client, request, observers=[records.append])
    assert scope.cancelled_caught
    assert upstream.open == 0
    assert count_open_exchanges(client) == 0
    assert [record.outcome for record in records] == [Outcome.CANCELLED]


@pytest.mark.parametrize("status", [101, 700])
async def test_fetch_refuses_a_status_that_is_not_final(status: int) -> None:
    await failing(answering(b"x", status=status), UpstreamProtocolError)


async def test_fetch_refuses_a_coding_that_cannot_be_decoded() -> None:
    upstream = answering(b"x", headers=[("content-encoding", "compress")])
    await failing(upstream, UpstreamProtocolError)


async def test_fetch_returns_what_a_mock_returns() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"a": 1}))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        response = await fetch(client, client.build_request("GET", "/"))
        assert response.json() == {"a": 1}
        with pytest.raises(UpstreamBodyTooLarge):
            await fetch(client, client.build_request("GET", "/"), max_bytes=3)


async def test_fetch_follows_redirects_and_calls_hooks() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/":
            return httpx.Response(302, headers={"location": "/next"})
        return httpx.Response(200, text=request.url.path)

    async def hook(response: httpx.Response) -> None:
        await response.aread()

    async with httpx.AsyncClient(
        transport=httpx.MockTransport(answer),
        base_url="http://x",
        follow_redirects=True,
        event_hooks={"response": [hook]},
    ) as client:
        response = await fetch(client, client.build_request("GET", "/"))
    assert response.text == "/next"
    assert len(response.history) == 1
    assert response.request.url.path == "/next"


async def test_fetch_counts_while_it_is_open() -> None:
    counts: list[int] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        counts.append(count_open_exchanges(client))
        return httpx.Response(200)

    client = InMemoryUpstream(answer).client()
    await fetch(client, client.build_request("GET", "/"))
    assert counts == [1]
    assert count_open_exchanges(client) == 0


async def test_fetch_sends_a_forwarded_body() -> None:
    upstream = answering(b"x")
    client = upstream.client()
    caller = Caller("POST", headers=[(b"content-length", b"6")], body=[b"abc", b"def"])
    request = Request(caller.scope, caller.receive)
    await fetch(client, forward_request(client, request))
    assert upstream.bodies == [b"abcdef"]


async def test_fetch_refuses_arguments_that_make_no_sense() -> None:
    client = answering().client()
    request = client.build_request("GET", "/")
    with pytest.raises(TypeError, match=r"fetch needs an httpx\.AsyncClient"):
        await fetch(None, request)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"fetch needs the httpx\.Request"):
        await fetch(client, "/")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="deadline=0"):
        await fetch(client, request, deadline=0)
    with pytest.raises(ValueError, match="max_bytes=0"):
        await fetch(client, request, max_bytes=0)
    with pytest.raises(TypeError):
        await fetch(client, request, observers=[1])  # type: ignore[list-item]


@pytest.mark.real_time
@pytest.mark.parametrize("fast", [pytest.param(True, marks=pytest.mark.asyncio_only), False])
async def test_fetch_loses_no_pool_slots(fast: bool) -> None:
    limits = httpx.Limits(max_connections=2)
    transport: httpx.AsyncBaseTransport = (
        AsyncioTransport(limits=limits) if fast else httpx.AsyncHTTPTransport(limits=limits)
    )
    with Upstream() as upstream:
        upstream.get("/large").content(b"x" * 100_000)
        upstream.get("/slow").stall(60)
        upstream.get("/ok").json({"a": 1})
        async with httpx.AsyncClient(transport=transport, base_url=upstream.url) as client:
            for _ in range(5):
                with pytest.raises(UpstreamBodyTooLarge):
                    await fetch(client, client.build_request("GET", "/large"), max_bytes=10)
                with pytest.raises(UpstreamTimeout):
                    await fetch(client, client.build_request("GET", "/slow"), deadline=0.02)
                with anyio.move_on_after(0.02):
                    await fetch(client, client.build_request("GET", "/slow"))
            response = await fetch(client, client.build_request("GET", "/ok"))
        assert response.json() == {"a": 1}
