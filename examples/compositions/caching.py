"""Caching by HTTP's rules (RFC 9111) with hishel, in SQLite or in a shared Redis.

uvicorn examples.compositions.caching:app
REDIS_URL=redis://127.0.0.1 uvicorn examples.compositions.caching:app --workers 4
"""

import hashlib
import os
from email.utils import formatdate
from typing import Annotated

import anyio
import httpx
import redis.asyncio
from fastapi import Depends, FastAPI, Header, Request
from hishel import AsyncBaseStorage, AsyncRedisStorage, AsyncSqliteStorage, CacheOptions
from hishel.httpx import AsyncCacheTransport

from asgi_upstream import (
    ReverseProxy,
    StreamedResponse,
    client_lifespan,
    forward_request,
    get_client,
)
from asgi_upstream.transport import AsyncioTransport

UPSTREAM_URL = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9000")
REDIS_URL = os.environ.get("REDIS_URL")
DATABASE = os.environ.get("DATABASE", ".cache/cache.db")
LARGEST = 10 * 1024 * 1024  # bytes; a longer body is relayed but not stored
NAMES_A_CALLER = ("cookie", "x-api-key")


class Origin(httpx.AsyncBaseTransport):
    """Adds what the cache needs and upstreams leave out."""

    def __init__(self, next_transport: httpx.AsyncBaseTransport) -> None:
        self.next_transport = next_transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self.next_transport.handle_async_request(request)
        request.extensions["opened"] = response
        fields = response.headers
        fields.setdefault("date", formatdate(usegmt=True))  # Otherwise its age would always be 0.
        control = fields.get("cache-control", "")
        names_one = any(name in request.headers for name in NAMES_A_CALLER)
        not_for_all = "set-cookie" in fields or "*" in fields.get("vary", "")
        if not_for_all or (names_one and "public" not in control):
            fields["cache-control"] = f"private, {control}".rstrip(", ")
        is_of_all = "caching" not in request.extensions
        if response.status_code == 304 and is_of_all and is_for_one_caller(request, fields):
            # hishel would merge the headers of a 304, cookies included, into the shared entry. An
            # unknown ETag makes it request the complete response instead.
            request.extensions["tag"] = fields.get("etag")
            fields["etag"] = '"for one caller"'
        return response

    async def aclose(self) -> None:
        await self.next_transport.aclose()


def is_for_one_caller(request: httpx.Request, fields: httpx.Headers) -> bool:
    """Whether the response to this request is private (RFC 9111 3.5, 5.2.2)."""
    control = fields.get("cache-control", "").lower()
    if "private" in control or "no-store" in control:
        return True
    shared = ("public", "s-maxage", "must-revalidate")
    return "authorization" in request.headers and not any(word in control for word in shared)


class Cache(AsyncCacheTransport):
    """hishel's transport, which also closes the response if storing it is cancelled."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await super().handle_async_request(request)
            if response.status_code == 304 and "tag" in request.extensions:
                del response.headers["etag"]  # The caller sent a condition of its own.
                if (tag := request.extensions["tag"]) is not None:
                    response.headers["etag"] = tag
            return response
        except BaseException:
            if (opened := request.extensions.get("opened")) is not None:
                with anyio.CancelScope(shield=True):
                    await opened.aclose()
            raise


def storage() -> AsyncBaseStorage:
    if REDIS_URL is None:
        return AsyncSqliteStorage(database_path=DATABASE, max_stream_size=LARGEST)
    server = redis.asyncio.from_url(REDIS_URL, socket_timeout=1, socket_connect_timeout=1)
    return AsyncRedisStorage(server, max_stream_size=LARGEST)


def cached_client() -> httpx.AsyncClient:
    """Create the transport at each startup, because a closed storage stays closed."""
    cache = Cache(Origin(AsyncioTransport()), storage(), rfc=True)
    return httpx.AsyncClient(base_url=UPSTREAM_URL, transport=cache)


app = FastAPI(lifespan=client_lifespan(cached_client))
app.mount("/api", ReverseProxy())


@app.get("/mine/{path:path}")
async def mine(
    request: Request,
    client: Annotated[httpx.AsyncClient, Depends(get_client)],
    authorization: Annotated[str, Header()],
) -> StreamedResponse:
    """A cache per caller, which may store private responses too."""
    outgoing = forward_request(client, request, prefix="/mine")
    key = hashlib.sha256(f"{authorization} {outgoing.url}".encode()).hexdigest()
    outgoing.extensions["caching"] = {"key": key, "rfc": CacheOptions(shared=False)}
    return StreamedResponse(client, outgoing)
