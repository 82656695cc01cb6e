"""Reads request bodies: JSON objects, compressed or not, and never more than `MAX_BYTES`."""

import gzip
import io
import json
import os
import zlib
from collections.abc import Callable
from typing import Any

import zstandard
from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

MAX_BYTES = int(os.environ.get("MAX_BYTES", 10_000_000))  # of a request, before and after decoding
MAX_WINDOW = 8 * 1024 * 1024  # bytes of memory that a zstd body may claim (RFC 9659)
NOT_AN_OBJECT = "the body is not a JSON object"


async def read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object that the caller sent.

    Raises:
        HTTPException: 413 for more than `MAX_BYTES`, 415 for an unknown content coding, 400 for
            anything else that is not a JSON object.
    """
    decode = find_decoder(request.headers.get("content-encoding", ""))
    body = await read_raw(request)
    try:
        body = await run_in_threadpool(decode, body)
        asked = json.loads(body) if len(body) <= MAX_BYTES else None
    except (ValueError, RecursionError, EOFError, OSError, zlib.error, zstandard.ZstdError):
        raise HTTPException(400, NOT_AN_OBJECT) from None
    check_size(len(body))
    if not isinstance(asked, dict):
        raise HTTPException(400, NOT_AN_OBJECT)
    return asked


async def read_raw(request: Request) -> bytes:
    """Return the body as it was sent."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            check_size(len(body))
    except ClientDisconnect:  # The caller cannot read this answer.
        raise HTTPException(400, "the body is incomplete") from None
    return bytes(body)


def check_size(count: int) -> None:
    """Answer 413 above `MAX_BYTES`."""
    if count > MAX_BYTES:
        raise HTTPException(413, f"more than {MAX_BYTES} bytes")


# Decoders return at most `MAX_BYTES` and one byte more, which is then too many.


def decode_gzip(body: bytes) -> bytes:
    return gzip.GzipFile(fileobj=io.BytesIO(body)).read(MAX_BYTES + 1)


def decode_deflate(body: bytes) -> bytes:
    """Decode deflate with the zlib header, or without it, as some clients send it."""
    is_zlib = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
    decoder = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
    return decoder.decompress(body, MAX_BYTES + 1)


def decode_zstd(body: bytes) -> bytes:
    decoder = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    return decoder.stream_reader(body, read_across_frames=True).read(MAX_BYTES + 1)


DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": decode_gzip,
    "x-gzip": decode_gzip,
    "deflate": decode_deflate,
    "zstd": decode_zstd,
}


def find_decoder(coding: str) -> Callable[[bytes], bytes]:
    """Return the decoder of a content coding. Answer 415 for any other coding."""
    try:
        return DECODERS[coding.strip().lower()]
    except KeyError:
        headers = {"accept-encoding": "gzip, deflate, zstd"}
        raise HTTPException(415, "unknown content coding", headers) from None
