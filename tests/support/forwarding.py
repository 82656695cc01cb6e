"""Requests of a caller, to be forwarded."""

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

import anyio
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import ASGIApp

from asgi_upstream import (
    ReverseProxy,
)
from tests.support.asgi import Caller, InMemoryUpstream, answering
from tests.support.flavor import httpx

BASE = "http://up.example"


Fields = Iterable[tuple[bytes, bytes]]


def client_of(upstream: InMemoryUpstream | None = None, **options: Any) -> httpx.AsyncClient:
    options.setdefault("base_url", BASE)
    return httpx.AsyncClient(transport=upstream or answering(), **options)


def caller_of(
    path: str = "/",
    method: str = "GET",
    *,
    headers: Fields = (),
    body: Sequence[bytes] = (),
    client: httpx.AsyncClient | None = None,
    **scope: Any,
) -> Caller:
    """Who asks for `path`, which has the query with it, as a server passes it on."""
    raw, _, query = path.encode("latin-1").partition(b"?")
    caller = Caller(method, headers=[(b"host", b"app.example"), *headers], body=body)
    path = unquote(raw.decode("latin-1"))
    caller.scope.update(path=path, raw_path=raw, query_string=query, **scope)
    if client is not None:
        caller.scope["state"] = {"client": client}
    return caller


def request_of(path: str = "/", method: str = "GET", **options: Any) -> Request:
    caller = caller_of(path, method, **options)
    return Request(caller.scope, caller.receive)


def target_of(request: httpx.Request) -> bytes:
    target: bytes = request.extensions["target"]
    return target


def values(request: httpx.Request, name: bytes) -> list[bytes]:
    return [value for key, value in request.headers.raw if key.lower() == name]


async def called(caller: Caller, app: ASGIApp) -> Caller:
    with anyio.fail_after(60):
        return await caller.call(app)


async def forwarded(
    upstream: InMemoryUpstream,
    path: str = "/",
    method: str = "GET",
    *,
    headers: Fields = (),
    body: Sequence[bytes] = (),
    scope: dict[str, Any] | None = None,
    **options: Any,
) -> Caller:
    """The caller, after a ReverseProxy that is the whole app forwarded its request."""
    caller = caller_of(
        path, method, headers=headers, body=body, client=client_of(upstream), **(scope or {})
    )
    try:
        return await called(caller, ReverseProxy(**options))
    finally:
        assert upstream.open == 0


some_methods = "GET get POST HEAD OPTIONS DELETE TRACE CONNECT X M-SEARCH"


methods = st.sampled_from(some_methods.split(" "))


def make_caller(
    upstream: InMemoryUpstream,
    method: str = "POST",
    chunks: Sequence[bytes] = (),
    *,
    complete: bool = True,
    headers: Sequence[tuple[bytes, bytes]] = (),
    **scope: Any,
) -> Caller:
    caller = Caller(method, headers=headers, body=chunks, body_is_whole=complete)
    caller.scope.update(scope, state={"client": upstream.client()})
    return caller
