"""The transport that client_lifespan chooses, for every combination of options."""

import asyncio
import logging
import ssl
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, cast

import anyio
import httpx
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from asgi_upstream import StreamedResponse, client_lifespan, forward_request, get_client
from asgi_upstream._httpx.default_transport import (
    choose_transport,
    find_env_proxy,
    keepalive_socket_options,
)
from asgi_upstream.transport import AsyncioTransport
from asgi_upstream.transport import _connect as connecting
from asgi_upstream.transport.httpx2 import AsyncioTransport as HTTPX2AsyncioTransport

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_env_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Subclass(httpx.AsyncClient):
    pass


def make_client(**options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(**options)


LIBRARIES = {"httpx": (httpx, AsyncioTransport), "httpx2": (httpx2, HTTPX2AsyncioTransport)}


def transport_of(client: object) -> object:
    return cast(Any, client)._transport


def open_on(backend: str, factory: Any, options: Mapping[str, Any]) -> object:
    async def opened() -> object:
        async with client_lifespan(factory, **options)(None) as state:
            return transport_of(state["client"])

    return anyio.run(opened, backend=backend)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transport": None},
        {"limits": httpx.Limits(max_connections=3)},
        {"verify": False},
        {"trust_env": False},
        {"http2": False, "http1": True},
        {"mounts": {}},
        {"mounts": None, "proxy": None},
        {"cookies": {}, "timeout": 3, "follow_redirects": True},
    ],
)
def test_default_transport_is_fast(library: str, options: dict[str, object]) -> None:
    module, fast = LIBRARIES[library]
    assert type(open_on("asyncio", module.AsyncClient, options)) is fast
    assert type(open_on("trio", module.AsyncClient, options)) is module.AsyncHTTPTransport


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "options",
    [
        {"http2": True},
        {"http1": False, "http2": True},
        {"proxy": "http://127.0.0.1:1"},
        {"mounts": {"all://other": None}},
    ],
)
def test_default_transport_is_httpx_for_its_options(
    library: str, options: dict[str, object]
) -> None:
    module, _ = LIBRARIES[library]
    assert type(open_on("asyncio", module.AsyncClient, options)) is module.AsyncHTTPTransport


@pytest.mark.parametrize("factory", [Subclass, make_client])
def test_default_transport_is_httpx_for_other_factories(factory: Any) -> None:
    assert type(open_on("asyncio", factory, {})) is httpx.AsyncHTTPTransport


@pytest.mark.parametrize("make", [httpx.AsyncHTTPTransport, httpx.MockTransport, AsyncioTransport])
def test_given_transport_is_used(make: Any) -> None:
    transport = make(lambda request: httpx.Response(200)) if make is httpx.MockTransport else make()
    assert open_on("asyncio", httpx.AsyncClient, {"transport": transport}) is transport


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_env_proxy_selects_httpx_unless_not_trusted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert find_env_proxy() == name.upper()
    assert type(open_on("asyncio", httpx.AsyncClient, {})) is httpx.AsyncHTTPTransport
    for options in ({"trust_env": False},):
        assert type(open_on("asyncio", httpx.AsyncClient, options)) is AsyncioTransport
    monkeypatch.setenv("NO_PROXY", "*")
    assert type(open_on("asyncio", httpx.AsyncClient, {})) is AsyncioTransport


def test_env_without_proxy_keeps_the_fast_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost,10.0.0.1")
    assert type(open_on("asyncio", httpx.AsyncClient, {})) is AsyncioTransport


def test_reason_names_what_decided() -> None:
    def reason(factory: object = httpx.AsyncClient, **options: object) -> str:
        return choose_transport(factory, options, "asyncio", None).reason

    assert reason(http2=True) == "http2=True"
    assert reason(proxy="http://p") == "proxy= is given"
    assert reason(uds="/a") == "uds= is given"
    assert reason(http1=False) == "http1=False"
    assert "factory" in reason(Subclass)
    assert "trio" in choose_transport(httpx.AsyncClient, {}, "trio", None).reason


@pytest.mark.parametrize("factory", [httpx.AsyncClient, httpx2.AsyncClient, Subclass, httpx.Client])
@pytest.mark.parametrize("option", ["limits", "verify", "cert", "http1", "http2", "trust_env"])
def test_option_that_transport_hides_is_refused(factory: Any, option: str) -> None:
    options: dict[str, Any] = {
        option: True,
        "transport": httpx.MockTransport(lambda r: httpx.Response(200)),
    }
    with pytest.raises(
        TypeError, match=rf"httpx ignores {option}= .* MockTransport\({option}=...\)"
    ):
        client_lifespan(factory, **options)


def test_transport_without_the_environment_is_allowed() -> None:
    client_lifespan(transport=httpx.MockTransport(lambda r: httpx.Response(200)), trust_env=False)


async def start(**options: Any) -> None:
    async with client_lifespan(**options)(None):
        pass


def test_transport_is_logged_once_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asgi_upstream")
    asyncio.run(start())
    asyncio.run(start(http2=True))
    asyncio.run(start(transport=httpx.AsyncHTTPTransport()))
    assert [record.getMessage() for record in caplog.records if record.name == "asgi_upstream"] == [
        "client 'client' uses AsyncioTransport: no option needs httpx's transport",
        "client 'client' uses httpx's transport: http2=True",
        "client 'client' uses the given transport: transport= is given",
    ]


def test_fast_transport_beside_env_proxy_warns_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    asyncio.run(start(transport=AsyncioTransport(trust_env=False)))
    asyncio.run(start(transport=httpx.AsyncHTTPTransport()))
    assert not caplog.records
    asyncio.run(start(transport=AsyncioTransport()))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "ignores HTTPS_PROXY" in record.getMessage()


def test_tls_context_is_created_once(monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[ssl.SSLContext] = []
    original = httpx.create_ssl_context

    def create(*args: Any, **options: Any) -> ssl.SSLContext:
        created.append(original(*args, **options))
        return created[-1]

    monkeypatch.setattr(httpx, "create_ssl_context", create)
    monkeypatch.setattr(httpx._transports.default, "create_ssl_context", create)
    asyncio.run(start())
    assert len(created) == 1


def test_limits_reach_the_fast_transport() -> None:
    limits = httpx.Limits(max_connections=7)
    transport = open_on("asyncio", httpx.AsyncClient, {"limits": limits})
    assert cast(Any, transport)._asyncio_pool._max_connections == 7


def test_keepalive_is_enabled_on_httpx_transports() -> None:
    for options in ({"http2": True}, {"proxy": "http://127.0.0.1:1"}):
        transport = cast(Any, open_on("asyncio", httpx.AsyncClient, options))
        assert transport._pool._socket_options == keepalive_socket_options()


@pytest.mark.process
def test_report_names_the_default_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "asgi_upstream"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "AsyncioTransport by default" in report
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "httpx's transport by default: HTTPS_PROXY is set" in report


@pytest.mark.parametrize("how", ["environment", "proxy=", "transport="])
def test_app_behind_a_proxy_reaches_the_upstream(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    async def forward(request: Request) -> StreamedResponse:
        client = await get_client(request)
        return StreamedResponse(client, forward_request(client, request, prefix="/f"))

    async def build(request: Request) -> StreamedResponse:
        client = await get_client(request)
        return StreamedResponse(client, client.build_request("GET", "/b"))

    async def call() -> None:
        options: dict[str, Any] = {}
        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            if how == "environment":
                monkeypatch.setenv("HTTP_PROXY", url)
            elif how == "proxy=":
                options["proxy"] = url
            else:
                options["transport"] = httpx.AsyncHTTPTransport(proxy=url)
            app = Starlette(routes=[Route("/f/{path}", forward), Route("/b", build)])
            lifespan = client_lifespan(base_url="http://upstream.invalid:81", **options)
            asgi = httpx.ASGITransport(app)
            async with lifespan(app), httpx.AsyncClient(transport=asgi) as caller:
                assert (await caller.get("http://app/f/x?y")).text == "ok"
                assert (await caller.get("http://app/b")).text == "ok"

    asyncio.run(call())
    assert asked == [
        b"GET http://upstream.invalid:81/x?y HTTP/1.1",
        b"GET http://upstream.invalid:81/b HTTP/1.1",
    ]


def test_lookup_does_not_wait_for_to_thread_work() -> None:
    """All threads of the loop's default executor are busy."""

    async def resolve() -> list[connecting.Address]:
        loop = asyncio.get_running_loop()
        ended = threading.Event()
        busy = [loop.run_in_executor(None, ended.wait) for _ in range(64)]
        try:
            async with asyncio.timeout(60):
                return await connecting._resolve(loop, "localhost", 80)
        finally:
            ended.set()
            await asyncio.gather(*busy)

    assert asyncio.run(resolve())


@pytest.mark.parametrize("age", [0, -1.0, float("nan")])
def test_maximum_age_must_be_positive(age: float) -> None:
    with pytest.raises(ValueError, match="max_connection_age"):
        AsyncioTransport(max_connection_age=age)
