"""Content codings undone with bounded memory (RFC 9110 8.4).

httpx decodes a chunk at once, however much it grows, and takes a gzip body that ends too soon for
a whole one. A relay can afford neither, so gzip and deflate are undone here, 64 KiB at a time.
The codings that httpx gets from other packages (br, zstd) are left to it, in small slices.
"""

import zlib
from collections.abc import AsyncIterable, AsyncIterator
from functools import cache

import httpx

from .errors import UpstreamProtocolError

_PIECE = 65536
_SLICE = 16  # bytes; the other codings may turn each into about a megabyte
_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def codings_of(response: httpx.Response) -> list[str]:
    """The content codings of a response, in the order they were applied."""
    names = response.headers.get_list("content-encoding", split_commas=True)
    return [name for name in map(str.lower, map(str.strip, names)) if name not in ("", "identity")]


@cache
def can_decode(coding: str) -> bool:
    """Whether the coding can be undone, here or by httpx with what is installed."""
    if coding in _WBITS:
        return True
    try:
        probe = httpx.Response(200, headers={"content-encoding": coding}, content=b"not coded")
    except httpx.DecodingError:
        return True
    return probe.content != b"not coded"


def decoded(body: AsyncIterable[bytes], codings: list[str]) -> AsyncIterable[bytes]:
    """`body` with its codings undone, the last applied first.

    Raises, while it is read:
        httpx.DecodingError: the body is not what its coding says, or ends too soon.
        UpstreamProtocolError: at once, for a coding that cannot be undone.
    """
    for coding in reversed(codings):
        if not can_decode(coding):
            raise UpstreamProtocolError
        body = _inflated(body, _WBITS[coding]) if coding in _WBITS else _by_httpx(body, coding)
    return body


async def _inflated(body: AsyncIterable[bytes], wbits: int) -> AsyncIterator[bytes]:
    inflate = zlib.decompressobj(wbits)
    started = False
    try:
        async for data in body:
            while data:
                if inflate.eof:  # another gzip member follows (RFC 1952 2.2)
                    inflate = zlib.decompressobj(wbits)
                try:
                    piece = inflate.decompress(data, _PIECE)
                except zlib.error:
                    if started or wbits != 15:
                        raise
                    # "deflate" means zlib's format, yet some send the bare stream (9110 8.4.1.2).
                    inflate = zlib.decompressobj(-15)
                    piece = inflate.decompress(data, _PIECE)
                started = True
                if piece:
                    yield piece
                data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    except zlib.error as exc:
        raise httpx.DecodingError(str(exc)) from exc
    if started and not inflate.eof:
        raise httpx.DecodingError("the compressed body ends too soon")


def _by_httpx(body: AsyncIterable[bytes], coding: str) -> AsyncIterator[bytes]:
    async def slices() -> AsyncIterator[bytes]:
        async for chunk in body:
            for start in range(0, len(chunk), _SLICE):
                yield chunk[start : start + _SLICE]

    return httpx.Response(200, headers={"content-encoding": coding}, content=slices()).aiter_bytes()
