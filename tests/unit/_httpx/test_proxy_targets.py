"""The target of a request whose upstream is behind an HTTP proxy."""

import asyncio
from typing import Any

import httpx
import httpx2
import pytest
from starlette.requests import Request

from asgi_upstream import StreamedResponse, client_lifespan, forward_request
from tests.support.asgi import Caller
from tests.support.raw_upstream import RawUpstream
from tests.support.tls import make_tls_contexts
from tests.support.tunnel_proxy import TunnelProxy

TARGET = b"/x;y?q=[1]"  # httpx would send %5B1%5D


async def forward(client: Any) -> int:
    caller = Caller(headers=[(b"host", b"app")])
    caller.scope["path"] = "/x;y"
    caller.scope["raw_path"], _, caller.scope["query_string"] = TARGET.partition(b"?")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = forward_request(client, Request(scope, receive))
        await StreamedResponse(client, request)(scope, receive, send)

    return (await caller.call(app)).status


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize("how", ["environment", "proxy=", "transport="])
def test_forwarded_target_passes_a_tunnel_unchanged(
    library: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls, trust = make_tls_contexts("upstream.example")

    async def call() -> None:
        async with upstream, proxy:
            proxy.upstream_port = upstream.port
            options: dict[str, Any] = {"verify": trust, "proxy": proxy.url}
            if how == "environment":
                monkeypatch.setenv("HTTPS_PROXY", options.pop("proxy"))
            elif how == "transport=":
                options = {"transport": library.AsyncHTTPTransport(**options)}
            url = "https://upstream.example"
            lifespan = client_lifespan(library.AsyncClient, base_url=url, **options)
            async with lifespan(None) as state:
                assert [await forward(state["client"]) for _ in range(2)] == [200, 200]

    upstream, proxy = RawUpstream(tls=tls), TunnelProxy()
    asyncio.run(call())
    assert proxy.request_lines == [b"CONNECT upstream.example:443 HTTP/1.1"]
    targets = [request.split(b" ")[1] for request in upstream.requests]
    assert targets == [TARGET, TARGET]
