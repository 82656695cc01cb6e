"""Bodies as a whole: read up to a bound, and given as a stream."""

from collections.abc import AsyncIterator
from contextlib import suppress

import httpx

from .._httpx.flavors import HTTPXModule
from ..errors import UpstreamBodyTooLarge
from .scope import ExchangeScope


def with_content(
    upstream: httpx.Response, content: bytes, library: HTTPXModule, *, decoded: bool
) -> httpx.Response:
    """`upstream` with its whole body, so that `.json()`, `.text` and `.content` work."""
    codings = upstream.headers.pop("content-encoding", None)  # or it would be decoded once more
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
    if codings is not None and not decoded:
        response.headers["content-encoding"] = codings
    return response


async def iter_single(content: bytes) -> AsyncIterator[bytes]:
    """`content` as a stream."""
    yield content


def ensure_bytes(chunk: object) -> bytes:
    """`chunk`, of a type like that of bytes, as bytes.

    Raises:
        TypeError: it is of another.
    """
    if isinstance(chunk, bytes):
        return chunk
    if not isinstance(chunk, bytearray | memoryview):
        raise TypeError(f"transform yielded {type(chunk).__name__}, not bytes")
    return bytes(chunk)  # pyright: ignore[reportUnknownArgumentType]


async def read_limited(body: AsyncIterator[bytes], max_bytes: int, watch: ExchangeScope) -> bytes:
    """All of `body`.

    Raises:
        UpstreamBodyTooLarge: it is longer than `max_bytes`.
    """
    content: bytes | bytearray = b""
    async for chunk in body:
        watch.raise_if_cancelled()
        content = append_limited(content, ensure_bytes(chunk), max_bytes)
    return bytes(content)


def append_limited(content: bytes | bytearray, chunk: bytes, max_bytes: int) -> bytes | bytearray:
    """`content` with `chunk` behind it; raises as `read`."""
    if not content:
        content = chunk  # as it mostly stays
    else:
        content = content if isinstance(content, bytearray) else bytearray(content)
        content += chunk
    if len(content) > max_bytes:
        raise UpstreamBodyTooLarge
    return content
