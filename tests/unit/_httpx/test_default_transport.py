"""The transport that client_lifespan chooses, for every combination of options."""

import asyncio
import logging
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import certifi
import httpx
import httpx2
import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from asgi_upstream import StreamedResponse, client_lifespan, forward_request, get_client
from asgi_upstream._httpx.default_transport import (
    choose_transport,
    keepalive_socket_options,
)
from asgi_upstream.transport import AsyncioTransport
from asgi_upstream.transport import _connect as connecting
from asgi_upstream.transport.httpx2 import AsyncioTransport as HTTPX2AsyncioTransport
from tests.support.servers import ROOT

ENVIRONMENT = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE")


@pytest.fixture(autouse=True)
def clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ENVIRONMENT, "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Subclass(httpx.AsyncClient):
    pass


def make_client(**options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(**options)


FAST = "AsyncioTransport"
FAST_OF_HTTPX2 = "AsyncioTransport of httpx2"
HTTPX = "httpx's"
FACTORY = "the one that the factory creates"
GIVEN = "the given one"
PROXY = "http://127.0.0.1:1"
KINDS = {
    AsyncioTransport: FAST,
    HTTPX2AsyncioTransport: FAST_OF_HTTPX2,
    httpx.AsyncHTTPTransport: HTTPX,
    httpx2.AsyncHTTPTransport: HTTPX,
}


def mock() -> httpx.MockTransport:
    return httpx.MockTransport(lambda request: httpx.Response(200))


def make_transport(make: Callable[[], object]) -> dict[str, Any]:
    return {"transport": make()}


@dataclass(frozen=True)
class ClientCase:
    """A client, and the transport that it gets.

    Attributes:
        row: The row of the table in docs/transport.md: its first cell.
        make_options: Creates the options, and the transport among them.
        also_on_httpx2: Whether the case is the same with the client of httpx2.
    """

    row: str
    transport: str
    make_options: Callable[[], dict[str, Any]] = dict
    factory: Any = httpx.AsyncClient
    backend: str = "asyncio"
    environment: Mapping[str, str] = field(default_factory=dict)
    also_on_httpx2: bool = True


def with_options(
    row: str, transport: str, *options: dict[str, Any], **case: Any
) -> list[ClientCase]:
    return [ClientCase(row, transport, partial(dict, each), **case) for each in options]


def with_environment(
    row: str, transport: str, *environments: dict[str, str], **options: Any
) -> list[ClientCase]:
    return [ClientCase(row, transport, lambda: options, environment=each) for each in environments]


OPTIONS_ROW = "`limits=`, `verify=`, `cert=`, `trust_env=`"
PROXY_ROW = "`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` in the environment"
NO_PROXY_ROW = "… with `trust_env=False` or `NO_PROXY=*`"
FACTORY_ROW = "a subclass or a function as the factory, `httpx.Client`"
PROXIES = [
    {name: PROXY} for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy")
]
CASES = [
    *with_options(
        "no option",
        FAST,
        {},
        {"base_url": "http://upstream", "cookies": {}, "timeout": 3, "follow_redirects": True},
        {"http2": False, "http1": True},
        {"transport": None, "mounts": None, "proxy": None},
        {"mounts": {}},
    ),
    *with_environment("no option", FAST, {"NO_PROXY": "localhost,10.0.0.1"}, {"HTTP_PROXY": ""}),
    *with_options(
        OPTIONS_ROW,
        FAST,
        {"limits": httpx.Limits(max_connections=3)},
        {"verify": False},
        {"verify": ssl.create_default_context()},
        {"trust_env": False},
    ),
    *with_environment(
        "`SSL_CERT_FILE`, `SSL_CERT_DIR` in the environment",
        FAST,
        {"SSL_CERT_FILE": certifi.where()},
        {"SSL_CERT_DIR": str(Path(certifi.where()).parent)},
    ),
    ClientCase("`httpx2.AsyncClient` as the factory", FAST_OF_HTTPX2, factory=httpx2.AsyncClient),
    *with_options("trio", HTTPX, {}, {"limits": httpx.Limits()}, {"verify": False}, backend="trio"),
    *with_options(
        "`http2=True`, `http1=False`", HTTPX, {"http2": True}, {"http1": False, "http2": True}
    ),
    *with_options("`proxy=`, `mounts=`", HTTPX, {"proxy": PROXY}, {"mounts": {"all://x": None}}),
    *with_environment(PROXY_ROW, HTTPX, *PROXIES),
    *with_environment(PROXY_ROW, HTTPX, {"HTTPS_PROXY": PROXY, "NO_PROXY": "localhost"}),
    *with_environment(NO_PROXY_ROW, FAST, *PROXIES, trust_env=False),
    *with_environment(NO_PROXY_ROW, FAST, *({**each, "NO_PROXY": "*"} for each in PROXIES)),
    *(
        ClientCase(FACTORY_ROW, FACTORY, factory=factory, also_on_httpx2=False)
        for factory in (Subclass, make_client, httpx.Client)
    ),
    *(
        ClientCase("`transport=`", GIVEN, partial(make_transport, make), also_on_httpx2=False)
        for make in (httpx.AsyncHTTPTransport, AsyncioTransport, mock)
    ),
]


def name_transport(client: Any, options: Mapping[str, Any], factory: object) -> str:
    transport = client._transport
    if transport is options.get("transport"):
        return GIVEN
    if factory not in (httpx.AsyncClient, httpx2.AsyncClient):
        assert type(transport) in (httpx.AsyncHTTPTransport, httpx.HTTPTransport)
        return FACTORY
    return KINDS[type(transport)]


def open_on(backend: str, factory: Any, options: Mapping[str, Any]) -> Any:
    async def open_client() -> object:
        async with client_lifespan(factory, **options)(None) as state:
            return state["client"]

    return anyio.run(open_client, backend=backend)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row)
def test_client_gets_the_transport_of_the_table(
    case: ClientCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    options = case.make_options()
    factories = [case.factory, httpx2.AsyncClient] if case.also_on_httpx2 else [case.factory]
    for factory in factories:
        expected = case.transport
        if expected == FAST and factory is httpx2.AsyncClient:
            expected = FAST_OF_HTTPX2
        client = open_on(case.backend, factory, options)
        assert name_transport(client, options, factory) == expected


def test_table_of_the_page_is_that_of_the_test() -> None:
    lines = (ROOT / "docs" / "transport.md").read_text().splitlines()
    table = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    begins = {FAST: "`AsyncioTransport`", FAST_OF_HTTPX2: "the [same for httpx2]", GIVEN: "that"}
    expected = {case.row: begins.get(case.transport, case.transport) for case in CASES}
    assert [row for row, _ in table[2:]] == list(expected)
    for row, transport in table[2:]:
        assert transport.startswith(expected[row]), row


@pytest.mark.filterwarnings("ignore:`cert=:DeprecationWarning")
def test_options_reach_the_fast_transport(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = tmp_path / "client.pem"
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    context = ssl.create_default_context()
    own = open_on("asyncio", httpx.AsyncClient, {"verify": context, "cert": str(certificate)})
    assert own._transport._connector._tls is context
    with pytest.raises(OSError, match="No such file"):
        open_on("asyncio", httpx.AsyncClient, {"cert": str(tmp_path / "missing.pem")})
    options = {"verify": False, "limits": httpx.Limits(max_connections=7), "trust_env": False}
    client = open_on("asyncio", httpx.AsyncClient, options)
    transport = client._transport
    assert transport._connector._tls.verify_mode is ssl.CERT_NONE
    assert transport._asyncio_pool._max_connections == 7
    assert (client.trust_env, transport.trust_env) == (False, False)


def test_option_that_httpx_does_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'uds'"):
        open_on("asyncio", httpx.AsyncClient, {"uds": "/run/upstream.sock"})


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


def test_keepalive_is_enabled_on_httpx_transports() -> None:
    for options in ({"http2": True}, {"proxy": "http://127.0.0.1:1"}):
        transport = open_on("asyncio", httpx.AsyncClient, options)._transport
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
