"""Content codings undone with bounded memory (RFC 9110 8.4).

httpx decodes a chunk at once, however much it grows, and takes a gzip body that ends too soon for
a whole one. A relay can afford neither, so gzip and deflate are undone here, 64 KiB at a time.
The codings that httpx gets from other packages (br, zstd) are left to it, in small slices.
"""

import zlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator

import httpx

from .._httpx.flavors import HTTPXModule, small_cache
from ..errors import protocol_error

_MAX_OUTPUT = 65536
_INPUT_SLICE = 64  # bytes, which br may turn into some tens of megabytes
_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def content_encodings(response: httpx.Response) -> list[str]:
    """The content codings of a response, in the order they were applied."""
    names = response.headers.get_list("content-encoding", split_commas=True)
    return [name for name in map(str.lower, map(str.strip, names)) if name not in ("", "identity")]


@small_cache
def can_decode(coding: str, library: HTTPXModule = httpx) -> bool:
    """Whether the coding can be undone, here or by httpx with what is installed."""
    probe = b"not coded"
    try:
        response = library.Response(200, headers={"content-encoding": coding}, content=probe)
    except library.DecodingError:
        return True
    return coding in _WBITS or response.content != probe


def decode_body(
    body: AsyncIterable[bytes], codings: list[str], library: HTTPXModule = httpx
) -> AsyncIterator[bytes]:
    """`body` with its codings undone, the last applied first, in pieces of at most 64 KiB.

    Raises, while it is read:
        httpx.DecodingError: the body is not what its coding says, or ends too soon.
        UpstreamProtocolError: at once, for a coding that cannot be undone.
    """
    for coding in reversed(codings):
        if not can_decode(coding, library):
            raise protocol_error(f"cannot decode content-encoding {coding!r}")
        decode = _inflate if coding in _WBITS else _decode_with_httpx
        body = decode(aiter(body), coding, library)
    return aiter(body)


async def _inflate(
    body: AsyncIterator[bytes], coding: str, library: HTTPXModule
) -> AsyncIterator[bytes]:
    inflate, head = zlib.decompressobj(_WBITS[coding]), b""
    try:
        async for data in body:
            if len(head) < 2:
                head = data = head + data
                if len(head) < 2:
                    continue
                # Some send "deflate" without zlib's two bytes, of which this is the check.
                if coding == "deflate" and (head[0] & 15 != 8 or int.from_bytes(head[:2]) % 31):
                    inflate = zlib.decompressobj(-15)
            while data:
                if inflate.eof:  # another gzip member follows (RFC 1952 2.2), or padding
                    if not (data := data.lstrip(b"\0")):
                        break
                    inflate = zlib.decompressobj(_WBITS[coding])
                if piece := inflate.decompress(data, _MAX_OUTPUT):
                    yield piece
                data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
        if head and not inflate.eof:
            raise library.DecodingError("compressed body is truncated")
    except zlib.error as exc:
        raise library.DecodingError(str(exc)) from exc
    finally:
        if isinstance(body, AsyncGenerator):
            await body.aclose()


def _decode_with_httpx(
    body: AsyncIterator[bytes], coding: str, library: HTTPXModule
) -> AsyncIterator[bytes]:
    async def slices() -> AsyncIterator[bytes]:
        async for chunk in body:
            for start in range(0, len(chunk), _INPUT_SLICE):
                yield chunk[start : start + _INPUT_SLICE]

    fields = {"content-encoding": coding}
    return library.Response(200, headers=fields, content=slices()).aiter_bytes()
