"""What an exchange that has to decode asks the upstream for, and what it refuses to decode."""

import gzip
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request

from asgi_upstream import (
    BufferedResponse,
    StreamedResponse,
    UpstreamProtocolError,
    forward_request,
)
from tests.support.asgi import Caller, InMemoryUpstream, RawHeaders, answering
from tests.support.flavor import httpx

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

TEXT = b"the quick brown fox " * 20


def frame(error: Exception) -> bytes:
    return b"error"


async def identity(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in body:
        yield chunk


DECODES: list[dict[str, Any]] = [
    {"decode": True},
    {"transform": identity},
    {"on_stream_error": frame},
    {"heartbeat": 5},
    {"cls": BufferedResponse, "on_response": lambda response: None},
]
ASKED = [("accept-encoding", "gzip, compress, br;q=0.5"), ("range", "bytes=0-5"), ("if-range", "x")]


async def send(
    upstream: InMemoryUpstream,
    *,
    forwarded: bool = False,
    headers: RawHeaders = (),
    cls: Any = StreamedResponse,
    **options: Any,
) -> tuple[Caller, httpx.Request]:
    client = upstream.client()
    caller = Caller(headers=[(name.encode(), value.encode()) for name, value in headers])
    if forwarded:
        request = forward_request(client, Request(caller.scope, caller.receive))
    else:
        request = client.build_request("GET", "/", headers=list(headers))
    await caller.call(cls(client, request, **options))
    return caller, request


@pytest.mark.parametrize("forwarded", [False, True])
@pytest.mark.parametrize("options", DECODES)
async def test_exchange_that_decodes_asks_for_a_whole_decodable_body(
    options: dict[str, Any], forwarded: bool
) -> None:
    upstream = answering(TEXT)
    _, request = await send(upstream, forwarded=forwarded, headers=ASKED, **options)
    [sent] = upstream.requests
    assert sent.headers["accept-encoding"] == "gzip, br;q=0.5"
    assert "range" not in sent.headers
    assert "if-range" not in sent.headers
    assert request.headers["accept-encoding"] == "gzip, compress, br;q=0.5"
    assert request.headers["range"] == "bytes=0-5"


@pytest.mark.parametrize("forwarded", [False, True])
@pytest.mark.parametrize("options", [{}, {"cls": BufferedResponse}, {"on_response": len}])
async def test_exchange_that_does_not_decode_asks_as_it_was_told(
    options: dict[str, Any], forwarded: bool
) -> None:
    if "on_response" in options:
        options = {"on_response": lambda response: None}
    upstream = answering(TEXT)
    await send(upstream, forwarded=forwarded, headers=ASKED, **options)
    [sent] = upstream.requests
    assert sent.headers["accept-encoding"] == "gzip, compress, br;q=0.5"
    assert sent.headers["range"] == "bytes=0-5"


@pytest.mark.parametrize("value", ["none", "", "identity", "NONE"])
@pytest.mark.parametrize("options", DECODES)
async def test_content_encoding_that_means_identity_is_accepted(
    options: dict[str, Any], value: str
) -> None:
    caller, _ = await send(answering(TEXT, headers=[("content-encoding", value)]), **options)
    assert caller.body == TEXT


@pytest.mark.parametrize("options", [{"decode": True}, {"transform": identity}])
@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_compressed_part_of_a_body_is_not_decoded(cls: Any, options: dict[str, Any]) -> None:
    upstream = answering(gzip.compress(TEXT), status=206, headers=PART)
    with pytest.raises(UpstreamProtocolError):
        await send(upstream, cls=cls, **options)
    assert upstream.open == 0


PART = [("content-range", "bytes 0-29/300"), ("content-encoding", "gzip")]


async def test_part_of_a_body_is_not_transformed() -> None:
    upstream = answering(TEXT, status=206, headers=PART[:1])
    with pytest.raises(UpstreamProtocolError):
        await send(upstream, transform=identity)


async def test_part_of_a_body_that_is_not_compressed_is_relayed() -> None:
    upstream = answering(TEXT, status=206, headers=PART[:1])
    caller, _ = await send(upstream, decode=True)
    assert caller.body == TEXT
    assert caller.values("content-range") == ["bytes 0-29/300"]


@pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])
async def test_too_many_codings_are_a_502(cls: Any) -> None:
    upstream = answering(TEXT, headers=[("content-encoding", ", ".join(["gzip"] * 3000))])
    with pytest.raises(UpstreamProtocolError):
        await send(upstream, cls=cls, decode=True)
    assert upstream.open == 0


@pytest.mark.parametrize("forwarded", [False, True])
async def test_nosniff_is_only_for_requests_of_the_endpoint(forwarded: bool) -> None:
    upstream = answering(TEXT, headers=[("content-type", "text/plain")])
    caller, _ = await send(upstream, forwarded=forwarded)
    assert caller.values("x-content-type-options") == ([] if forwarded else ["nosniff"])


@pytest.mark.parametrize("forwarded", [False, True])
async def test_event_stream_is_not_buffered_by_nginx(forwarded: bool) -> None:
    upstream = answering(TEXT, headers=[("content-type", "text/event-stream")])
    caller, _ = await send(upstream, forwarded=forwarded)
    assert caller.values("x-accel-buffering") == ["no"]
