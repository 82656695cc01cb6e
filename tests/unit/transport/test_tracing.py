"""The `trace` extension and the DEBUG log are the same as on httpx's transport."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from asgi_upstream import StreamedResponse
from tests.support.asgi import Caller
from tests.support.flavor import AsyncioTransport, client_lifespan, httpcore, httpx
from tests.support.raw_upstream import BROKEN, RawUpstream
from tests.support.tls import make_tls_contexts
from tests.support.tracing import Event, trace_events

pytestmark = [pytest.mark.anyio, pytest.mark.asyncio_only]


async def _chunks() -> AsyncGenerator[bytes]:
    yield b"first"
    yield b"second"


@pytest.mark.parametrize("content", [None, lambda: b"whole", _chunks])
async def test_trace_has_the_events_of_httpx(content: Callable[[], object] | None) -> None:
    async with RawUpstream() as upstream:
        expected, seen = [
            await trace_events(cls(), upstream.url, content=content, times=2)
            for cls in (httpx.AsyncHTTPTransport, AsyncioTransport)
        ]
    # Here the response may be awaited while the body is sent.
    assert sorted(name for name, _ in seen) == sorted(name for name, _ in expected)
    assert {name: set(info) - {"timeout", "socket_options"} for name, info in seen} == {
        name: set(info) - {"timeout", "socket_options"} for name, info in expected
    }
    infos = dict(seen)
    assert isinstance(infos["http11.send_request_headers.started"]["request"], httpcore.Request)
    version, status, reason, headers = infos["http11.receive_response_headers.complete"][
        "return_value"
    ]
    assert (version, status, reason) == (b"HTTP/1.1", 200, b"OK")
    assert headers == [(b"content-length", b"2")]
    assert infos["connection.connect_tcp.complete"]["address"][0] == "127.0.0.1"


async def test_trace_of_a_failure_has_the_exception() -> None:
    events: list[Event] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        events.append((name, info))

    async with (
        RawUpstream(BROKEN["closed at once"]) as upstream,
        httpx.AsyncClient(transport=AsyncioTransport()) as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(upstream.url, extensions={"trace": trace})
        assert "http11.receive_response_headers.failed" in dict(events)
        name, info = next(event for event in events if event[0].endswith(".failed"))
        assert isinstance(info["exception"], httpx.RemoteProtocolError)
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:1", extensions={"trace": trace})
        name, info = events[-1]
        assert name == "connection.connect_tcp.failed"
        assert isinstance(info["exception"], OSError)


async def test_trace_of_a_relayed_request_is_complete() -> None:
    names: list[str] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        names.append(name)

    async with RawUpstream() as upstream, client_lifespan(base_url=upstream.url)(None) as state:
        client: Any = state["client"]
        request = client.build_request("GET", "/", extensions={"trace": trace})
        caller = await Caller().call(StreamedResponse(client, request))
    assert caller.body == b"ok"
    assert "connection.connect_tcp.complete" in names
    assert names[-3:] == [
        "http11.receive_response_body.complete",
        "http11.response_closed.started",
        "http11.response_closed.complete",
    ]


async def test_debug_log_has_the_lines_of_httpx(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, httpcore.__name__)
    lines = []
    async with RawUpstream() as upstream:
        for cls in (httpx.AsyncHTTPTransport, AsyncioTransport):
            caplog.clear()
            async with httpx.AsyncClient(transport=cls()) as client:
                await client.get(upstream.url)
            lines.append([(r.name, r.getMessage().split(" ")[0]) for r in caplog.records])
    expected, seen = ([line for line in each if line[1][:6] != "close."] for each in lines)
    assert [line for line in expected if line[0] != httpx.__name__] == [
        line for line in seen if line[0] != httpx.__name__
    ]
    assert (f"{httpcore.__name__}.connection", "connect_tcp.complete") in seen


async def _count_events(transport: AsyncioTransport, url: str, fails_at: int) -> int:
    """Send a request whose trace function fails at an event. Return the number of events."""
    count = 0

    async def trace(name: str, info: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == fails_at:
            raise LookupError(name)

    async with httpx.AsyncClient(transport=transport, base_url=url) as client:
        body = _chunks()
        with suppress(LookupError):
            await client.post("/", content=body, extensions={"trace": trace})
        await body.aclose()
        state = transport.pool_state()
        assert (state.open - state.idle, state.connecting, state.waiting) == (0, 0, 0)
    return count


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
async def test_trace_function_that_fails_leaves_nothing_open(kind: str, tmp_path: Path) -> None:
    tls, trust = make_tls_contexts("127.0.0.1")
    path = str(tmp_path / "socket") if kind == "unix" else ""
    async with RawUpstream(tls=tls if kind == "tls" else None, path=path) as upstream:

        def transport() -> AsyncioTransport:
            return AsyncioTransport(verify=trust, uds=path or None, trust_env=False)

        events = await _count_events(transport(), upstream.url, 0)
        assert events > 9
        for fails_at in range(1, events + 1):
            await _count_events(transport(), upstream.url, fails_at)
            for _ in range(1000):
                if not upstream.open:
                    break
                await asyncio.sleep(0.01)
            assert not upstream.open, fails_at
