"""HTTP/2 upstreams that send a GOAWAY, as nginx does, or a malformed head."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from asgi_upstream import (
    ExchangeRecord,
    StreamedResponse,
    UpstreamProtocolError,
    count_open_exchanges,
    fetch,
)
from asgi_upstream._httpx import workarounds
from asgi_upstream._httpx.http2 import prepare_http2_pools
from tests.support.asgi import Caller
from tests.support.flavor import client_lifespan, httpx
from tests.support.tls import TLSContexts, make_tls_contexts

pytestmark = pytest.mark.asyncio

MAX_CONCURRENT_STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
HTTP2: Any = {"http1": False, "http2": True, "timeout": 5}
NO_ERROR, INTERNAL_ERROR = 0, 2
NEW = {"x-new": "a header that HPACK keeps for the next request"}


class Upstream:
    """Sends a GOAWAY when the `goaway_after`th stream of a connection begins, or never for 0.

    It ignores later streams. It answers when all streams up to that one have begun, or at once on
    later connections. It leaves it to the other side to close.

    Attributes:
        accepted: The paths and bodies of the requests that it answered.
        connections: How many connections it had.
        all_closed: Is set when none of them is open.
    """

    def __init__(
        self,
        goaway_after: int,
        *,
        last: int | None = None,
        error: int = NO_ERROR,
        max_streams: int = 100,
        answers: bool = True,
        tls: TLSContexts | None = None,
    ) -> None:
        self.accepted: list[tuple[str, bytes]] = []
        self.connections = 0
        self.all_closed = asyncio.Event()
        self._open = 0
        self._goaway_after, self._last, self._error = goaway_after, last, error
        self._max_streams, self._answers = max_streams, answers
        self._tls = tls.server if tls else None
        if self._tls is not None:
            self._tls.set_alpn_protocols(["h2"])

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, ssl=self._tls)
        scheme = "https" if self._tls else "http"
        async with server:
            yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open += 1
        self.all_closed.clear()
        number = self.connections
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.local_settings = h2.settings.Settings(
            client=False, initial_values={MAX_CONCURRENT_STREAMS: self._max_streams}
        )
        state.initiate_connection()
        writer.write(state.data_to_send())
        requests: dict[int, tuple[str, bytes]] = {}
        complete: list[int] = []
        goaway, begun = b"", 0
        try:
            while data := await reader.read(65536):
                for event in state.receive_data(data):
                    stream: Any = getattr(event, "stream_id", None)
                    if isinstance(event, h2.events.RequestReceived):
                        if goaway:
                            continue
                        requests[stream] = (dict(event.headers)[b":path"].decode(), b"")
                        begun += 1
                        if begun == self._goaway_after:
                            last = stream if self._last is None else self._last
                            goaway = _goaway_frame(last, self._error)
                            requests = {s: r for s, r in requests.items() if s <= last}
                            writer.write(state.data_to_send() + goaway)
                    elif isinstance(event, h2.events.DataReceived) and stream in requests:
                        path, body = requests[stream]
                        requests[stream] = path, body + event.data
                        state.acknowledge_received_data(event.flow_controlled_length, stream)
                    elif isinstance(event, h2.events.StreamEnded) and stream in requests:
                        complete.append(stream)
                    elif isinstance(event, h2.events.StreamReset) and stream in complete:
                        complete.remove(stream)
                writer.write(state.data_to_send())
                if self._answers and (goaway or number > 1 or not self._goaway_after):
                    for stream in complete:
                        await self._respond(state, writer, stream, requests[stream])
                        requests.pop(stream)
                    complete.clear()
                if goaway and not self._answers:
                    break
        except ConnectionError:
            pass
        finally:
            self._open -= 1
            if not self._open:
                self.all_closed.set()
            writer.close()

    async def _respond(
        self, state: Any, writer: asyncio.StreamWriter, stream: int, request: tuple[str, bytes]
    ) -> None:
        self.accepted.append(request)
        state.send_headers(stream, [(":status", "200"), ("x-path", request[0])])
        writer.write(state.data_to_send())
        await asyncio.sleep(0.02)
        state.send_data(stream, b"first")
        writer.write(state.data_to_send())
        await asyncio.sleep(0.02)
        state.send_data(stream, b" second", end_stream=True)
        writer.write(state.data_to_send())


def _goaway_frame(last_stream: int, error: int) -> bytes:
    payload = last_stream.to_bytes(4) + error.to_bytes(4)
    return len(payload).to_bytes(3) + b"\x07\x00" + bytes(4) + payload


@asynccontextmanager
async def serving(
    upstream: Upstream, records: list[ExchangeRecord] | None = None, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    observers = [] if records is None else [records.append]
    async with upstream.serve() as url:
        lifespan = client_lifespan(base_url=url, **HTTP2, observers=observers, **options)
        async with lifespan(None) as state:
            client: Any = state["client"]
            yield client
            pool = client._transport._pool
            assert not pool._requests
            assert all(connection.is_idle() for connection in pool._connections)
            assert count_open_exchanges(client) == 0


async def call(client: httpx.AsyncClient, path: str, **options: Any) -> str:
    return (await fetch(client, client.build_request("GET", path, **options))).text


async def test_streams_before_a_goaway_are_answered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asgi_upstream")
    upstream, records = Upstream(3), list[ExchangeRecord]()
    async with serving(upstream, records) as client:
        bodies = await asyncio.gather(*(call(client, f"/{n}") for n in range(3)))
        assert bodies == ["first second"] * 3
        assert (upstream.connections, [r.outcome for r in records]) == (1, ["completed"] * 3)
        assert "GOAWAY after stream 5: the connection ends" in caplog.messages


async def test_connection_closes_after_its_last_response() -> None:
    upstream = Upstream(2)
    async with serving(upstream) as client:
        await asyncio.gather(call(client, "/0"), call(client, "/1"))
        await asyncio.wait_for(upstream.all_closed.wait(), 60)
        transport: Any = client._transport
        assert transport._pool._connections == []


async def test_relayed_stream_before_a_goaway_is_whole() -> None:
    async with serving(Upstream(1)) as client:
        caller = Caller()
        await caller.call(StreamedResponse(client, client.build_request("GET", "/0")))
        assert (caller.status, caller.body) == (200, b"first second")


async def test_requests_behind_a_goaway_are_sent_again() -> None:
    upstream = Upstream(2)
    async with serving(upstream) as client:
        bodies = await asyncio.gather(*(call(client, f"/{n}", content=b"x") for n in range(9)))
    assert bodies == ["first second"] * 9
    assert sorted(upstream.accepted) == [(f"/{n}", b"x") for n in range(9)]
    assert upstream.connections > 1


async def test_request_that_a_goaway_refuses_is_sent_again() -> None:
    upstream = Upstream(2, last=1)
    async with serving(upstream) as client:
        await asyncio.gather(call(client, "/0"), call(client, "/1"))
    assert (upstream.accepted, upstream.connections) == ([("/0", b""), ("/1", b"")], 2)


async def test_long_body_that_a_goaway_refuses_is_sent_again() -> None:
    upstream, body = Upstream(2, last=1), b"x" * 200_000
    async with serving(upstream) as client:
        await asyncio.gather(call(client, "/0"), call(client, "/1", content=body))
    assert (upstream.accepted, upstream.connections) == ([("/0", b""), ("/1", body)], 2)


async def test_request_that_waits_for_a_stream_goes_elsewhere() -> None:
    upstream = Upstream(1, max_streams=1)
    async with serving(upstream) as client:
        bodies = await asyncio.gather(*(call(client, f"/{n}") for n in range(3)))
    assert (bodies, len(upstream.accepted)) == (["first second"] * 3, 3)


async def test_accepted_request_without_response_is_a_502() -> None:
    upstream = Upstream(1, answers=False)
    async with serving(upstream) as client:
        with pytest.raises(UpstreamProtocolError):
            await call(client, "/0")
    assert upstream.connections == 1


async def test_pool_is_prepared_once_and_for_http2_only() -> None:
    async with serving(Upstream(99)) as client, httpx.AsyncClient() as other:
        transports: list[Any] = [client._transport, other._transport]
        prepared = set[object]()
        for _ in range(2):
            prepare_http2_pools(client)
            prepare_http2_pools(other)
            prepared.add(transports[0]._pool.create_connection)
        assert len(prepared) == 1
        assert "create_connection" not in vars(transports[1]._pool)


async def test_pool_of_one_connection_survives_a_goaway() -> None:
    upstream = Upstream(2)
    async with serving(upstream, limits=httpx.Limits(max_connections=1)) as client:
        await asyncio.gather(*(call(client, f"/{n}") for n in range(9)))
    assert len(upstream.accepted) == 9


@pytest.mark.parametrize("uses_tls", [False, True])
@pytest.mark.parametrize("cancels", ["scope", "task"])
@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_cancelled_request_leaves_the_connection_whole(
    uses_tls: bool, cancels: str, turns: int
) -> None:
    """If its write were cut off, a frame would be missing that the other requests need.

    httpcore takes the lock for writing in the first turn of the event loop, and writes in the next.
    """
    tls = make_tls_contexts("127.0.0.1") if uses_tls else None
    upstream, scope = Upstream(0, tls=tls), anyio.CancelScope()

    async def trace(event: str, _: object) -> None:
        if event == "http2.send_request_headers.started":
            task: Any = asyncio.current_task()
            cancel_later(scope.cancel if cancels == "scope" else task.cancel, turns)

    async def call_and_cancel() -> None:
        with scope:
            await call(client, "/", content=b"x", headers=NEW, extensions={"trace": trace})

    async with serving(upstream, verify=tls.trust if tls else True) as client:
        await call(client, "/")
        before = asyncio.create_task(call(client, "/before"))
        await anyio.wait_all_tasks_blocked()
        cancelled = asyncio.create_task(call_and_cancel())
        done, _ = await asyncio.wait([cancelled], timeout=30)
        if not done:  # It ignores its cancellation, and the event loop would wait for it forever.
            asyncio.tasks._unregister_task(cancelled)
        assert done
        assert await call(client, "/after", headers=NEW) == "first second"
        assert await before == "first second"
    assert scope.cancelled_caught or cancelled.cancelled()
    assert upstream.connections == 1


def cancel_later(cancel: Callable[[], object], turns: int) -> None:
    """Call `cancel` after some turns of the event loop."""
    loop = asyncio.get_running_loop()
    loop.call_soon(cancel if turns == 1 else partial(cancel_later, cancel, turns - 1))


async def test_streamed_body_behind_a_goaway_is_a_502() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    async with serving(Upstream(2, last=1)) as client:
        request = client.build_request("POST", "/1", content=body())
        results = await asyncio.gather(
            call(client, "/0"), fetch(client, request), return_exceptions=True
        )
    assert results[0] == "first second"
    assert isinstance(results[1], UpstreamProtocolError)


@pytest.mark.parametrize("options", [{"last": 0}, {"error": INTERNAL_ERROR}])
async def test_goaway_that_accepts_nothing_is_a_502(options: dict[str, Any]) -> None:
    async with serving(Upstream(1, **options)) as client:
        with pytest.raises(UpstreamProtocolError):
            await call(client, "/0")


def _literal(name: bytes, value: bytes) -> bytes:
    """Return a header that is not in a table (RFC 7541 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


@pytest.mark.parametrize(
    "fields",
    [
        [], [(b":status", b"abc")], [(b":status", b"")], [(b":status", b"2_00")],
        [(b":status", b"+200")], [(b":status", b" 200")], [(b":status", b"0200")],
        [(b":status", b"200"), (b":status", b"404")], [(b":status", b"200"), (b":path", b"/")],
    ],
)  # fmt: skip
async def test_malformed_status_is_a_502(fields: list[tuple[bytes, bytes]]) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"".join(_literal(*field) for field in [*fields, (b"x", b"y")])
        await reader.read(65536)
        settings = bytes(3) + b"\x04" + bytes(5)
        writer.write(settings + len(head).to_bytes(3) + b"\x01\x05\0\0\0\x01" + head)
        await reader.read()
        writer.close()
        closed.set()

    closed = asyncio.Event()
    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, client_lifespan(base_url=url, **HTTP2)(None) as state:
        client: Any = state["client"]
        with pytest.raises(UpstreamProtocolError):
            await call(client, "/")
        assert not client._transport._pool._requests
    await closed.wait()


class EndlessUpstream:
    """Answers each request with the first bytes of a body, and does not read while it writes.

    It answers `/short` completely.

    Attributes:
        resets: The paths of the streams that were reset.
        connections: How many connections it had.
        closed: Is set when a connection ends.
    """

    def __init__(self, size: int, *, acknowledges_pings: bool = True) -> None:
        self.resets: list[str] = []
        self.connections = 0
        self.closed = asyncio.Event()
        self._size = size
        self._acknowledges_pings = acknowledges_pings

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[httpx.AsyncClient]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, client_lifespan(base_url=url, **HTTP2)(None) as state:
            client: Any = state["client"]
            yield client

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.transport.set_write_buffer_limits(0)
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        paths: dict[int, str] = {}
        try:
            while data := await reader.read(65536):
                for event in state.receive_data(data):
                    if isinstance(event, h2.events.StreamReset):
                        self.resets.append(paths[event.stream_id])
                    elif isinstance(event, h2.events.PingReceived) and not self._acknowledges_pings:
                        state.clear_outbound_data_buffer()
                    elif isinstance(event, h2.events.RequestReceived):
                        stream: Any = event.stream_id
                        paths[stream] = dict(event.headers)[b":path"].decode()
                        state.send_headers(stream, [(":status", "200")])
                        size = min(self._size, state.local_flow_control_window(stream))
                        for _ in range(size // 16384):
                            state.send_data(stream, bytes(16384))
                        if paths[stream] == "/short":
                            state.end_stream(stream)
                writer.write(state.data_to_send())
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            self.closed.set()


async def leave_at_body(client: httpx.AsyncClient, path: str) -> None:
    response = StreamedResponse(client, client.build_request("GET", path))
    caller = await Caller(leaves_at_body=True).call(response)
    assert caller.status == 200


async def test_upstream_that_blocks_in_a_write_sees_a_disconnect() -> None:
    """The body does not fit into the sockets' buffers, and no other request reads it."""
    upstream = EndlessUpstream(16 * 1024 * 1024)
    async with upstream.serve() as client:
        for number in (1, 2):
            await leave_at_body(client, "/long")
            assert upstream.resets == ["/long"] * number
    assert upstream.connections == 1


async def test_disconnect_leaves_the_connection_to_the_others() -> None:
    upstream = EndlessUpstream(16384)
    async with upstream.serve() as client:
        await call(client, "/short")
        async with client.stream("GET", "/stays"):
            for _ in range(3):
                await leave_at_body(client, "/leaves")
                assert len(await call(client, "/short")) == 16384
            assert upstream.resets == ["/leaves"] * 3
        assert len(await call(client, "/short")) == 16384
    assert upstream.connections == 1


async def test_ping_ends_when_another_request_reads_its_acknowledgement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for limit in ("PING_TIMEOUT", "CLEAN_UP_TIMEOUT"):
        monkeypatch.setattr(workarounds, limit, 120)
    upstream = EndlessUpstream(16384)
    async with upstream.serve() as client:
        await call(client, "/short")
        async with client.stream("GET", "/stays") as response:
            reading = asyncio.create_task(response.aread())
            await anyio.wait_all_tasks_blocked()
            await asyncio.wait_for(leave_at_body(client, "/leaves"), 60)
            reading.cancel()


@pytest.mark.parametrize("is_shared", [False, True])
async def test_connection_that_ignores_a_ping_is_closed_if_idle(
    is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workarounds, "PING_TIMEOUT", 0.1)
    upstream = EndlessUpstream(16384, acknowledges_pings=False)
    async with upstream.serve() as client, AsyncExitStack() as stack:
        await call(client, "/short")
        if is_shared:
            await stack.enter_async_context(client.stream("GET", "/stays"))
        await leave_at_body(client, "/leaves")
        if not is_shared:
            await asyncio.wait_for(upstream.closed.wait(), 60)
        assert len(await call(client, "/short")) == 16384
        assert upstream.connections == (1 if is_shared else 2)


async def test_connection_of_another_request_is_closed_after_a_disconnect() -> None:
    """It was there before the client's first exchange, so it cannot send a PING."""
    upstream = EndlessUpstream(16384)
    async with upstream.serve() as client:
        assert (await client.get("/short")).status_code == 200
        await leave_at_body(client, "/leaves")
        await asyncio.wait_for(upstream.closed.wait(), 60)
        assert len(await call(client, "/short")) == 16384
    assert upstream.connections == 2
