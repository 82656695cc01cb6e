"""Changes the body chunk by chunk while it streams.

    uvicorn examples.transform:app

`transform` gets the decoded chunks and yields bytes. It never holds more than one chunk.
"""

import hashlib
import os
from collections.abc import AsyncIterator
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI

from asgi_upstream import StreamedResponse, client_lifespan, get_client

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")

app = FastAPI(lifespan=client_lifespan(base_url=UPSTREAM_URL))
Client = Annotated[httpx.AsyncClient, Depends(get_client)]


async def upper_case(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield each chunk in upper case."""
    async for chunk in chunks:
        yield chunk.upper()


async def checksum(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield only the checksum of all chunks, at the end."""
    digest = hashlib.sha256()
    async for chunk in chunks:
        digest.update(chunk)
    yield digest.hexdigest().encode()


@app.get("/slow-text")
async def slow_text(client: Client) -> StreamedResponse:
    """Relay each line in upper case when the upstream sends it."""
    request = client.build_request("GET", "/slow-text")
    return StreamedResponse(client, request, transform=upper_case)


@app.get("/checksum")
async def file_checksum(client: Client, size: int = 200_000_000) -> StreamedResponse:
    """Compute the checksum of a large file without holding it in memory."""
    request = client.build_request("GET", "/file", params={"size": size})
    return StreamedResponse(client, request, transform=checksum, media_type="text/plain")
