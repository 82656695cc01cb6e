"""The body as raw bytes, decoded bytes, text and lines.

    uvicorn examples.body:app

"Decoded" has two meanings: a content coding such as gzip is removed, or bytes become characters.
"""

import codecs
import os
from collections.abc import AsyncIterator
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI

from asgi_upstream import StreamedResponse, client_lifespan, get_client, upstream_errors

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")

app = FastAPI(lifespan=client_lifespan(base_url=UPSTREAM_URL))
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


@app.get("/raw")
async def raw(client: Client) -> StreamedResponse:
    """Relay the bytes as the upstream sent them, still compressed."""
    return StreamedResponse(client, client.build_request("GET", "/gzip"))


@app.get("/bytes")
async def decoded(client: Client) -> StreamedResponse:
    """Relay the decoded bytes, without the content-encoding header."""
    return StreamedResponse(client, client.build_request("GET", "/gzip"), decode=True)


async def reversed_text(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Reverse the text of each chunk. A character may be split over two chunks."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    async for chunk in chunks:
        yield decoder.decode(chunk)[::-1].encode()
    yield decoder.decode(b"", final=True).encode()


async def numbered_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Number each line as soon as it is complete. A line may span several chunks."""
    number, rest = 0, b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield b"%d: %s\n" % (number, line)
    if rest:
        yield b"%d: %s" % (number + 1, rest)


@app.get("/text")
async def text(client: Client) -> StreamedResponse:
    """Change the body as text while it streams."""
    return StreamedResponse(client, client.build_request("GET", "/text"), transform=reversed_text)


@app.get("/lines")
async def lines(client: Client) -> StreamedResponse:
    """Change the body line by line while it streams."""
    return StreamedResponse(client, client.build_request("GET", "/text"), transform=numbered_lines)


@app.get("/longest-line")
async def longest_line(client: Client) -> dict[str, str]:
    """Read lines with httpx, for a response that is not relayed."""
    with upstream_errors():
        async with client.stream("GET", "/text") as upstream:
            return {"line": max([line async for line in upstream.aiter_lines()], key=len)}
