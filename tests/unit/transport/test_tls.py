"""TLS for real, with certificates that trustme makes, on asyncio's own loop and on uvloop."""

import asyncio
import contextlib
import datetime
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from asgi_upstream import BufferedResponse, StreamedResponse, UpstreamProtocolError, fetch
from tests.support.asgi import Caller
from tests.support.flavor import AsyncioTransport, client_lifespan, httpx
from tests.support.raw_upstream import OK, RawUpstream, Serve, read_request
from tests.support.tracing import trace_events
from tests.support.waiting import aeventually

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "uvloop")]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def certified(
    authority: trustme.CA, *names: str, expires: datetime.datetime | None = None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    not_before = expires and expires - datetime.timedelta(days=30)
    certificate = authority.issue_cert(*names, not_before=not_before, not_after=expires)
    certificate.configure_cert(context)
    return context


def client(upstream: RawUpstream, verify: ssl.SSLContext, **options: Any) -> httpx.AsyncClient:
    transport = AsyncioTransport(verify=verify, **options)
    return httpx.AsyncClient(transport=transport, base_url=upstream.url, timeout=60)


async def test_a_good_certificate_is_taken_and_its_connection_is_kept(
    authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    tls = certified(authority, "127.0.0.1")
    async with RawUpstream(tls=tls) as upstream, client(upstream, trust) as c:
        for _ in range(3):
            assert (await c.get("/")).text == "ok"
        assert len(upstream.peers) == 1


async def test_the_name_of_the_host_is_checked(
    authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    tls = certified(authority, "localhost")
    async with RawUpstream(tls=tls) as upstream, client(upstream, trust) as c:
        assert (await c.get(f"https://localhost:{upstream.port}/")).text == "ok"
        with pytest.raises(httpx.ConnectError, match=r"certificate verify failed.*127\.0\.0\.1"):
            await c.get("/")


async def test_an_expired_certificate_is_a_connect_error(
    authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    tls = certified(authority, "127.0.0.1", expires=past)
    async with RawUpstream(tls=tls) as upstream, client(upstream, trust) as c:
        with pytest.raises(httpx.ConnectError, match="certificate has expired") as caught:
            await c.get("/")
        assert caught.value.request.url.host == "127.0.0.1"
        assert upstream.requests == []


async def test_a_certificate_of_nobody_known_is_a_connect_error(trust: ssl.SSLContext) -> None:
    tls = certified(trustme.CA(), "127.0.0.1")
    async with RawUpstream(tls=tls) as upstream:
        for verify in (trust, True):
            async with client(upstream, verify) as c:  # type: ignore[arg-type]
                with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                    await c.get("/")
        async with client(upstream, False) as c:  # type: ignore[arg-type]
            assert (await c.get("/")).text == "ok"


async def test_an_upstream_that_speaks_no_tls_is_a_connect_error(trust: ssl.SSLContext) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(OK)
        await reader.read()

    async with RawUpstream(plain) as upstream, client(upstream, trust) as c:
        with pytest.raises(httpx.ConnectError):
            await c.get(f"https://127.0.0.1:{upstream.port}/")
        await aeventually(lambda: not upstream.open)


async def test_close_in_the_tls_handshake_is_a_connect_error(
    trust: ssl.SSLContext,
) -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with RawUpstream(closing) as upstream, client(upstream, trust) as c:
        with pytest.raises(httpx.ConnectError):
            await c.get(f"https://127.0.0.1:{upstream.port}/")


async def test_a_handshake_that_stalls_is_a_connect_timeout(trust: ssl.SSLContext) -> None:
    async def stalling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    limits = httpx.Limits(max_connections=1)
    async with RawUpstream(stalling) as upstream, client(upstream, trust, limits=limits) as c:
        url = f"https://127.0.0.1:{upstream.port}/"
        for _ in range(2):  # there is room again
            with pytest.raises(httpx.ConnectTimeout) as caught:
                await c.get(url, timeout=httpx.Timeout(60, connect=0.2))
            assert str(caught.value.request.url) == url
            await aeventually(lambda: not upstream.open)
        assert len(upstream.peers) == 2


async def test_a_cancelled_handshake_leaves_nothing_open(trust: ssl.SSLContext) -> None:
    async def stalling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with RawUpstream(stalling) as upstream:
        async with client(upstream, trust) as c:
            getting = asyncio.create_task(c.get(f"https://127.0.0.1:{upstream.port}/"))
            await aeventually(lambda: upstream.open == 1)
            getting.cancel()
            await asyncio.wait([getting])
            assert getting.cancelled()
        await aeventually(lambda: not upstream.open)


# Closed in the midst of a body, without TLS's own notice (close_notify): anybody on the way can
# do that.

HEAD = b"HTTP/1.1 200 OK\r\n"
CUT = {
    "length": HEAD + b"content-length: 10\r\n\r\nhalf",
    "chunked": HEAD + b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "at the last chunk": HEAD + b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
}


def without_notice(data: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.1)  # until that was read: an abort throws away what was not
        # Past `ssl`: the end of the socket, and no alert before it.
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as sock:
            sock.shutdown(socket.SHUT_WR)
        await reader.read()

    return serve


async def read_into(got: list[bytes], c: httpx.AsyncClient, url: str) -> None:
    async with c.stream("GET", url) as response:
        async for part in response.aiter_raw():
            got.append(part)


@pytest.mark.parametrize("framing", CUT)
async def test_a_body_that_is_cut_off_is_an_error(
    authority: trustme.CA, trust: ssl.SSLContext, framing: str
) -> None:
    tls = certified(authority, "127.0.0.1")
    seen = []
    async with RawUpstream(without_notice(CUT[framing]), tls=tls) as upstream:
        stock = httpx.AsyncHTTPTransport(verify=trust, trust_env=False)
        for transport in (AsyncioTransport(verify=trust), stock):
            async with httpx.AsyncClient(transport=transport, timeout=60) as c:
                got: list[bytes] = []
                with pytest.raises(httpx.TransportError) as caught:
                    await read_into(got, c, upstream.url)
                assert b"".join(got) == b"half"
                assert caught.value.request.url.host == "127.0.0.1"
                seen.append(isinstance(caught.value, httpx.ReadError | httpx.RemoteProtocolError))
    assert seen == [True, True]


async def test_body_until_close_without_close_notify_is_an_error(
    authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    """RFC 9112 9.8. httpx's transport itself takes the body as complete."""
    tls = certified(authority, "127.0.0.1")
    async with RawUpstream(without_notice(HEAD + b"\r\nhalf"), tls=tls) as upstream:
        got: list[bytes] = []
        async with client(upstream, trust) as c:
            with pytest.raises(httpx.RemoteProtocolError):
                await read_into(got, c, upstream.url)
        assert b"".join(got) == b"half"
        stock = httpx.AsyncHTTPTransport(verify=trust, trust_env=False)
        async with httpx.AsyncClient(transport=stock, timeout=60) as c:
            assert (await c.get(upstream.url)).text == "half"


@pytest.mark.parametrize("transport", [AsyncioTransport, httpx.AsyncHTTPTransport])
@pytest.mark.parametrize("notice", [False, True])
async def test_relayed_body_until_close_needs_close_notify(
    authority: trustme.CA, trust: ssl.SSLContext, transport: Any, notice: bool
) -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + b"\r\nhalf")
        writer.close()
        await writer.wait_closed()

    serve = closing if notice else without_notice(HEAD + b"\r\nhalf")
    async with RawUpstream(serve, tls=certified(authority, "127.0.0.1")) as upstream:
        lifespan = client_lifespan(transport=transport(verify=trust), base_url=upstream.url)
        async with lifespan(None) as state:
            client: Any = state["client"]
            request = client.build_request("GET", "/")
            if notice:
                assert (await Caller().call(StreamedResponse(client, request))).body == b"half"
                assert (await fetch(client, request)).text == "half"
                return
            with pytest.raises(UpstreamProtocolError):
                await Caller().call(StreamedResponse(client, request))
            with pytest.raises(UpstreamProtocolError):
                await Caller().call(StreamedResponse(client, request, transform=aiter))
            with pytest.raises(UpstreamProtocolError):
                await Caller().call(BufferedResponse(client, request))
            with pytest.raises(UpstreamProtocolError):
                await fetch(client, request)
            assert (await fetch(client, client.build_request("HEAD", "/"))).text == ""


async def test_a_body_until_the_close_ends_with_the_notice(
    authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + b"\r\nwhole")
        writer.close()
        await writer.wait_closed()

    tls = certified(authority, "127.0.0.1")
    async with RawUpstream(closing, tls=tls) as upstream, client(upstream, trust) as c:
        assert (await c.get("/")).text == "whole"


# Who we are, what we speak and whom we ask for.


async def test_a_client_certificate_is_shown(
    authority: trustme.CA, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    tls = certified(authority, "127.0.0.1")
    tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(tls)
    names: list[Any] = []

    async def telling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        names.append(writer.get_extra_info("peercert")["subjectAltName"])
        writer.write(OK)
        await reader.read()

    issued = authority.issue_cert("we@client.example")
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate"))
    async with RawUpstream(telling, tls=tls) as upstream:
        ours = ssl.create_default_context(cafile=str(tmp_path / "ca"))
        ours.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
        async with client(upstream, ours) as c:
            assert (await c.get("/")).text == "ok"
        assert names == [(("email", "we@client.example"),)]
        async with client(upstream, trust) as c:
            with pytest.raises(httpx.TransportError):  # TLS 1.3 refuses after the handshake
                await c.get("/")
        assert len(names) == 1


@pytest.mark.filterwarnings("ignore:`cert=:DeprecationWarning")
async def test_cert_is_a_path_and_the_environment_names_whom_to_trust(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = certified(authority, "127.0.0.1")
    tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(tls)
    ca, ours = str(tmp_path / "ca"), str(tmp_path / "ours")
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("we@client.example").private_key_and_cert_chain_pem.write_to_path(ours)
    monkeypatch.setenv("SSL_CERT_FILE", ca)
    async with RawUpstream(tls=tls) as upstream:
        transport = AsyncioTransport(cert=ours)
        async with httpx.AsyncClient(transport=transport, base_url=upstream.url) as c:
            assert (await c.get("/")).text == "ok"
        transport = AsyncioTransport(cert=ours, trust_env=False)
        async with httpx.AsyncClient(transport=transport, base_url=upstream.url) as c:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await c.get("/")


async def test_it_says_that_it_speaks_http_1_1(
    authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    tls = certified(authority, "127.0.0.1")
    tls.set_alpn_protocols(["h2", "http/1.1"])
    trust.set_alpn_protocols(["h2"])  # of somebody who used the same context before
    async with (
        RawUpstream(tls=tls) as upstream,
        client(upstream, trust) as c,
        c.stream("GET", "/") as response,
    ):
        ssl_object = response.extensions["network_stream"].get_extra_info("ssl_object")
        assert ssl_object.selected_alpn_protocol() == "http/1.1"
        assert ssl_object.version().startswith("TLSv1.")
        assert response.http_version == "HTTP/1.1"


async def test_sni_hostname_is_who_is_asked_for_and_checked(
    authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    tls = certified(authority, "named.example")
    asked: list[str | None] = []
    tls.sni_callback = lambda sock, name, context: asked.append(name)
    async with RawUpstream(tls=tls) as upstream, client(upstream, trust) as c:
        for _ in range(2):
            response = await c.get("/", extensions={"sni_hostname": "named.example"})
            assert response.text == "ok"
        assert asked == ["named.example"]  # and kept for the same name only
        with pytest.raises(httpx.ConnectError):
            await c.get("/")
        with pytest.raises(httpx.ConnectError):
            await c.get("/", extensions={"sni_hostname": "other.example"})
        assert b"\r\nHost: 127.0.0.1:" in upstream.requests[0]


async def test_a_large_body_passes_both_ways(authority: trustme.CA, trust: ssl.SSLContext) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = (await read_request(reader)).partition(b"\r\n\r\n")[2]
        writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await reader.read()

    async def parts() -> AsyncIterator[bytes]:
        for number in range(64):
            yield bytes([number]) * 65536

    sent = b"".join(bytes([number]) * 65536 for number in range(64))
    tls = certified(authority, "127.0.0.1")
    async with RawUpstream(echo, tls=tls) as upstream, client(upstream, trust) as c:
        response = await c.post("/", content=parts(), headers={"content-length": str(len(sent))})
        assert response.content == sent


async def test_bytes_behind_the_answer_end_the_connection(
    authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    async def more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await reader.read()

    tls = certified(authority, "127.0.0.1")
    async with RawUpstream(more, tls=tls) as upstream, client(upstream, trust) as c:
        for number in (1, 2):
            assert (await c.get("/")).text == "ok"
            assert len(upstream.peers) == number


async def test_trace_has_the_events_of_a_handshake(
    authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    async with RawUpstream(tls=certified(authority, "127.0.0.1")) as upstream:
        expected, seen = [
            await trace_events(cls(verify=trust), upstream.url)
            for cls in (httpx.AsyncHTTPTransport, AsyncioTransport)
        ]
    assert [name for name, _ in seen] == [name for name, _ in expected]
    assert "connection.start_tls.complete" in dict(seen)
    assert dict(seen)["connection.start_tls.started"]["server_hostname"] == "127.0.0.1"


# A connection may end, or bytes may come, while it is idle and the event loop is busy.
BYTES_WHILE_IDLE = {"bytes": b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", "end": b""}


@pytest.mark.parametrize("kind", BYTES_WHILE_IDLE)
async def test_idle_connection_with_unread_tls_data_is_not_reused(
    authority: trustme.CA, trust: ssl.SSLContext, kind: str
) -> None:
    """The upstream is in a thread, so that it can send while the event loop is blocked."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)
    idle, served, connections = threading.Event(), threading.Event(), list[ssl.SSLSocket]()
    context = certified(authority, "127.0.0.1")

    def respond() -> ssl.SSLSocket:
        sock, _ = listener.accept()
        sock.settimeout(10)
        tls = context.wrap_socket(sock, server_side=True)
        connections.append(tls)
        tls.recv(65536)
        tls.sendall(OK)
        return tls

    def serve() -> None:
        first = respond()
        idle.wait(10)
        if data := BYTES_WHILE_IDLE[kind]:
            first.sendall(data)
        else:
            first.settimeout(0.1)
            with contextlib.suppress(OSError):
                first.unwrap()  # sends close_notify, and waits for the answer
        served.set()
        respond()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    with listener:
        async with httpx.AsyncClient(transport=AsyncioTransport(verify=trust), timeout=60) as c:
            assert (await c.get(url)).text == "ok"
            idle.set()
            assert served.wait(10)  # It blocks the event loop.
            assert (await c.post(url, content=b"x")).text == "ok"
        thread.join(10)
    assert len(connections) == 2
    for connection in connections:
        connection.close()
