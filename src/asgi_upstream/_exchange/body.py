"""Reads the response body: check its end, count, decode, limit.

Every iterator here is an object, not an async generator. A cancelled read ends a generator, and
then the rest of the body would be lost (`asyncio.wait_for(anext(body), 2)`).
"""

from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
)
from contextlib import suppress
from typing import Protocol, Self

import httpx

from .._httpx.interfaces import HTTPXModule
from ..errors import UpstreamBodyTooLarge
from .decoding import decode_chunk, make_decoders
from .recording import ExchangeRecorder
from .undelimited import check_end


def build_body(
    upstream: httpx.Response,
    stream: AsyncIterator[bytes],
    codings: list[str],
    library: HTTPXModule,
    recorder: ExchangeRecorder | None,
) -> AsyncIterator[bytes]:
    """Return the body of a response: a truncated one fails, and it is counted and decoded.

    Arguments:
        stream: The upstream's chunks.
        codings: The content codings to decode.
        recorder: Counts the upstream's bytes, if there are observers.

    Raises:
        UpstreamProtocolError: If a coding cannot be decoded.
    """
    body = check_end(upstream, stream, library)
    if recorder is not None:
        body = CountedBody(body, recorder.bytes_received)
    return DecodedBody(body, codings, library) if codings else body


class DecodedBody(AsyncIterator[bytes]):
    """Decodes a body, in pieces of at most 64 KiB.

    Raises:
        httpx.DecodingError: If the body is malformed or truncated.
        UpstreamProtocolError: At once, if a coding cannot be decoded.
    """

    def __init__(
        self, body: AsyncIterable[bytes], codings: list[str], library: HTTPXModule
    ) -> None:
        self._decoders = make_decoders(codings)
        self._errors = tuple({error for decoder in self._decoders for error in decoder.errors})
        self._source = aiter(body)
        self._library = library
        self._pieces: Iterator[bytes] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            try:
                for piece in self._pieces:
                    if piece:
                        return piece
            except self._errors as exc:
                raise self._library.DecodingError(str(exc)) from exc
            try:
                chunk = await anext(self._source)
            except StopAsyncIteration:
                if all(decoder.is_complete() for decoder in self._decoders):
                    raise
                raise self._library.DecodingError("compressed body is truncated") from None
            self._pieces = decode_chunk(self._decoders, chunk)


class CountedBody(AsyncIterator[bytes]):
    """Calls `count` with the size of each chunk."""

    def __init__(self, body: AsyncIterator[bytes], count: Callable[[int], None]) -> None:
        self._source = body
        self._count = count

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await anext(self._source)
        self._count(len(chunk))
        return chunk


class SingleChunk(AsyncIterator[bytes]):
    """A body that was read before."""

    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        content, self._content = self._content, None
        if content is None:
            raise StopAsyncIteration
        return content


def with_content(
    upstream: httpx.Response, content: bytes, library: HTTPXModule, *, decoded: bool
) -> httpx.Response:
    """Return `upstream` with its whole body, so that `.json()`, `.text` and `.content` work."""
    encoding = upstream.headers.pop("content-encoding", None)  # httpx would decode it again
    response = library.Response(
        upstream.status_code,
        headers=upstream.headers,
        content=content,
        request=upstream.request,
        extensions=upstream.extensions,
        history=upstream.history,
        default_encoding=upstream.default_encoding,
    )
    with suppress(RuntimeError):  # A response that was never streamed has no `elapsed`.
        response.elapsed = upstream.elapsed
    if encoding is not None and not decoded:
        response.headers["content-encoding"] = encoding
    return response


def ensure_bytes(chunk: object) -> bytes:
    """Return a chunk as bytes.

    Raises:
        TypeError: If `chunk` is not bytes-like.
    """
    if isinstance(chunk, bytes):
        return chunk
    if not isinstance(chunk, bytearray | memoryview):
        raise TypeError(f"transform yielded {type(chunk).__name__}, not bytes")
    return bytes(chunk)  # pyright: ignore[reportUnknownArgumentType]


class ChunkSource(Protocol):
    """A body that is read chunk by chunk, until an empty chunk.

    `read_nowait` returns None if no chunk has arrived yet. Then await `wait_readable`, and call it
    again.
    """

    def read_nowait(self) -> bytes | None: ...
    def wait_readable(self) -> Awaitable[None]: ...


class IteratorSource:
    """Reads an iterator as a `ChunkSource`.

    Arguments:
        body: The iterator. Its chunks may be empty, or another bytes-like type.
        raise_if_cancelled: Called after each chunk.
    """

    def __init__(self, body: AsyncIterator[bytes], raise_if_cancelled: Callable[[], None]) -> None:
        self._body = body
        self._raise_if_cancelled = raise_if_cancelled
        self._chunk: bytes | None = None

    def read_nowait(self) -> bytes | None:
        chunk, self._chunk = self._chunk, None
        return chunk

    async def wait_readable(self) -> None:
        """Read the next chunk that is not empty, or an empty one at the end.

        Raises:
            TypeError: If a chunk is not bytes-like. granian would send nothing for a `str`.
        """
        async for chunk in self._body:
            self._raise_if_cancelled()
            if chunk := ensure_bytes(chunk):
                self._chunk = chunk
                return
        self._chunk = b""


async def read_limited(
    body: AsyncIterator[bytes], max_bytes: int, raise_if_cancelled: Callable[[], None]
) -> bytes:
    """Return the whole body of an iterator.

    Raises:
        UpstreamBodyTooLarge: If the body is longer than `max_bytes`.
    """
    return await read_all(IteratorSource(body, raise_if_cancelled), max_bytes, None)


async def read_all(
    source: ChunkSource, max_bytes: int, count: Callable[[int], None] | None
) -> bytes:
    """Return the whole body, and call `count` with the size of each chunk.

    Raises:
        UpstreamBodyTooLarge: If the body is longer than `max_bytes`.
    """
    content: bytes | bytearray = b""
    while True:
        while (chunk := source.read_nowait()) is None:
            await source.wait_readable()
        if not chunk:
            return bytes(content)
        if count is not None:
            count(len(chunk))
        content = append_limited(content, chunk, max_bytes)


def append_limited(content: bytes | bytearray, chunk: bytes, max_bytes: int) -> bytes | bytearray:
    """Append `chunk` to `content`.

    Raises:
        UpstreamBodyTooLarge: If the result is longer than `max_bytes`.
    """
    if not content:
        content = chunk  # Usually there is only one.
    else:
        content = content if isinstance(content, bytearray) else bytearray(content)
        content += chunk
    if len(content) > max_bytes:
        raise UpstreamBodyTooLarge
    return content
