"""Apps with other libraries, as their READMEs write them. docs/comparison.md compares them."""

CODE = {
    "fastapi-proxy-lib": """
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request, Response
from fastapi_proxy_lib.core.http import ReverseHttpProxy

proxy = ReverseHttpProxy(
    httpx.AsyncClient(timeout=60),
    base_url="http://127.0.0.1:9000/",
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await proxy.aclose()


app = FastAPI(lifespan=lifespan)


@app.api_route("/api/{path:path}", methods=["GET", "POST"], include_in_schema=False)
async def api(request: Request, path: str) -> Response:
    return await proxy.proxy(request=request, path=path)
""",
    "fastapi-reverse-proxy": """
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi_reverse_proxy import Proxy, proxy_pass


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with Proxy(app):
        yield


app = FastAPI(lifespan=lifespan)


@app.api_route("/api/{path:path}", methods=["GET", "POST"], include_in_schema=False)
async def api(request: Request, path: str) -> Response:
    return await proxy_pass(
        request,
        "http://127.0.0.1:9000",
        "/" + path,
        timeout=60,
        additional_headers={"x-from": "app"},
    )
""",
    "asgiproxy": """
from asgiproxy.config import BaseURLProxyConfigMixin, ProxyConfig
from asgiproxy.context import ProxyContext
from asgiproxy.simple_proxy import make_simple_proxy_app


class Config(BaseURLProxyConfigMixin, ProxyConfig):
    upstream_base_url = "http://127.0.0.1:9000"
    rewrite_host_header = "127.0.0.1"


app = make_simple_proxy_app(ProxyContext(Config()))
""",
    "aiohttp by hand": """
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from fastapi import FastAPI
from starlette.responses import StreamingResponse


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        app.state.session = session
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/api/{path:path}")
async def api(path: str) -> StreamingResponse:
    url = "http://127.0.0.1:9000/" + path
    upstream = await app.state.session.get(url)
    return StreamingResponse(
        upstream.content.iter_any(),
        upstream.status,
        {"content-type": upstream.content_type},
    )
""",
}
