"""What happens to the body: decoding, transforms and limits."""

import gzip
import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgi_upstream import (
    BufferedResponse,
    StreamedResponse,
    UpstreamBodyTooLarge,
    UpstreamProtocolError,
)
from tests.support.asgi import Caller, answering
from tests.support.responses import AnyClass, answer_of, both, called, failing, upper

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


@both
async def test_decode_drops_the_headers_of_the_encoded_body(
    cls: AnyClass,
) -> None:
    coded = gzip.compress(b"text" * 100)
    upstream = answering(
        coded[:7],
        coded[7:],
        headers=[
            ("content-encoding", "gzip"),
            ("content-length", str(len(coded))),
            ("etag", '"t"'),
            ("content-type", "text/html"),
        ],
    )
    caller = await called(upstream, cls, decode=True)
    assert caller.body == b"text" * 100
    assert caller.values("content-encoding") == []
    assert caller.values("content-length") == ([] if cls is StreamedResponse else ["400"])
    assert caller.values("etag") == ['W/"t"']
    assert caller.values("content-type") == ["text/html"]


@both
async def test_decode_leaves_a_body_without_codings_as_it_is(cls: AnyClass) -> None:
    caller = await called(
        answering(b"12345", headers=[("content-length", "5"), ("etag", '"t"')]), cls, decode=True
    )
    assert caller.body == b"12345"
    assert caller.values("content-length") == ["5"]
    assert caller.values("etag") == ['"t"']


async def test_a_body_that_cannot_be_decoded_is_the_upstreams_failure() -> None:
    headers = [("content-encoding", "gzip")]
    caller, _ = await failing(
        answering(b"no gzip", headers=headers), UpstreamProtocolError, BufferedResponse, decode=True
    )
    assert caller.messages == []
    caller, _ = await failing(
        answering(gzip.compress(os.urandom(100))[:-9], headers=headers),
        UpstreamProtocolError,
        decode=True,
    )
    assert not caller.complete


@both
async def test_a_coding_that_nobody_can_undo_is_a_502_before_the_start(cls: AnyClass) -> None:
    upstream = answering(b"x", headers=[("content-encoding", "nonsense")])
    caller, _ = await failing(upstream, UpstreamProtocolError, cls, decode=True)
    assert caller.messages == []


@both
async def test_transform_changes_the_decoded_body_on_the_way(cls: AnyClass) -> None:
    coded = gzip.compress(b"some text")
    headers = [
        ("content-encoding", "gzip"),
        ("content-length", str(len(coded))),
        ("accept-ranges", "bytes"),
        ("etag", '"t"'),
    ]
    caller = await called(answering(coded, headers=headers), cls, transform=upper)
    assert caller.body == b"SOME TEXT"
    assert caller.values("content-encoding") == []
    assert caller.values("content-length") == ([] if cls is StreamedResponse else ["9"])
    assert caller.values("accept-ranges") == []
    assert caller.values("etag") == ['W/"t"']


async def test_a_streamed_transform_sees_each_chunk_as_it_comes() -> None:
    caller = await called(answering(b"a", b"b", b"c"), transform=upper)
    assert [m["body"] for m in caller.messages[1:] if m["body"]] == [b"A", b"B", b"C"]


@both
async def test_a_transform_may_send_what_it_likes(cls: AnyClass) -> None:
    async def around(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"<"
        async for chunk in body:
            yield b""
            yield chunk
        yield b">"

    assert (await called(answering(b"a", b"b"), cls, transform=around)).body == b"<ab>"


@both
async def test_a_transform_may_stop_before_the_end(cls: AnyClass) -> None:
    async def first(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            yield chunk
            return

    caller = await called(
        answering(b"a", b"b", headers=[("content-length", "2")]), cls, transform=first
    )
    assert caller.body.startswith(b"a")
    assert caller.complete


async def test_a_transform_is_closed_when_the_caller_leaves() -> None:
    closed: list[str] = []

    async def careful(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for chunk in body:
                yield chunk
        finally:
            closed.append("transform")

    upstream = answering(b"a", 30.0, b"b")
    with anyio.fail_after(60):
        await Caller(leaves_at_body=True).call(answer_of(upstream, transform=careful))
    assert closed == ["transform"]
    assert upstream.open == 0


async def test_a_transform_is_closed_when_sending_fails() -> None:
    closed: list[str] = []

    async def careful(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for chunk in body:
                yield chunk
        finally:
            await anyio.lowlevel.checkpoint()
            closed.append("transform")

    upstream = answering(b"a", b"b", b"c")
    await Caller(send_fails_after=3).call(answer_of(upstream, transform=careful))
    assert closed == ["transform"]
    assert upstream.open == 0


async def test_a_transform_that_raises_cuts_the_caller_off() -> None:
    async def fails(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            yield chunk
            raise LookupError("the transform's own")

    caller, error = await failing(answering(b"a", b"b"), LookupError, transform=fails)
    assert str(error) == "the transform's own"
    assert caller.body == b"a"
    assert not caller.complete


async def test_buffered_transform_that_raises_is_the_apps_failure() -> None:
    async def fails(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b""
        raise LookupError

    caller, _ = await failing(answering(b"a"), LookupError, BufferedResponse, transform=fails)
    assert caller.messages == []


@both
@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_a_transform_may_yield_what_is_like_bytes(cls: AnyClass, kind: type[object]) -> None:
    async def alike(body: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for chunk in body:
            yield kind(chunk)  # type: ignore[call-arg]

    caller = await called(answering(b"a"), cls, transform=alike)
    assert caller.body == b"a"
    assert {type(m["body"]) for m in caller.messages[1:]} == {bytes}


@both
async def test_a_transform_that_yields_text_is_told_what_is_wrong(cls: AnyClass) -> None:
    async def text(body: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        yield "text"

    caller, error = await failing(answering(b"a"), TypeError, cls, transform=text)
    assert "str" in str(error)
    assert not caller.complete


async def test_a_body_of_just_the_bound_passes() -> None:
    caller = await called(answering(b"12345"), BufferedResponse, max_bytes=5)
    assert caller.body == b"12345"


async def test_a_body_past_the_bound_is_a_502_and_read_no_further() -> None:
    upstream = answering(*[b"12345"] * 100)
    caller, error = await failing(upstream, UpstreamBodyTooLarge, BufferedResponse, max_bytes=9)
    assert isinstance(error, UpstreamBodyTooLarge)
    assert error.status_code == 502
    assert caller.messages == []
    assert upstream.chunks_read == 2


@pytest.mark.parametrize("options", [{"decode": True}, {"on_response": lambda r: None}])
async def test_a_small_gzip_that_grows_past_the_bound_is_a_502(options: dict[str, Any]) -> None:
    bomb = gzip.compress(bytes(5_000_000))
    upstream = answering(bomb, b"never read", headers=[("content-encoding", "gzip")])
    await failing(upstream, UpstreamBodyTooLarge, BufferedResponse, max_bytes=100_000, **options)
    assert upstream.chunks_read == 1


async def test_a_small_gzip_that_stays_coded_is_counted_as_it_is() -> None:
    bomb = gzip.compress(bytes(5_000_000))
    upstream = answering(bomb, headers=[("content-encoding", "gzip")])
    assert (await called(upstream, BufferedResponse, max_bytes=100_000)).body == bomb


async def test_a_transform_that_grows_past_the_bound_is_a_502() -> None:
    async def grows(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in body:
            while True:
                yield chunk

    upstream = answering(b"12345")
    await failing(upstream, UpstreamBodyTooLarge, BufferedResponse, max_bytes=50, transform=grows)


async def test_the_bound_is_ten_mebibytes_where_none_is_given() -> None:
    chunk = bytes(1024 * 1024)
    assert len((await called(answering(*[chunk] * 10), BufferedResponse)).body) == 10 * len(chunk)
    await failing(answering(*[chunk] * 10, b"x"), UpstreamBodyTooLarge, BufferedResponse)
