"""Both ends of an exchange, in memory: a scripted upstream, and a caller behind an ASGI server."""

import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

import anyio
import anyio.lowlevel
from starlette.types import ASGIApp, Message, Scope

from tests.support.flavor import httpx

RawHeaders = Sequence[tuple[str, str]]
Answer = Callable[[httpx.Request], Awaitable[httpx.Response]]


class InMemoryUpstream(httpx.AsyncBaseTransport):
    """A transport that answers by a function and counts the exchanges that are open."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []
        self.opened = 0
        self.closed = 0
        self.chunks_read = 0
        self.closing_waits = True

    @property
    def open(self) -> int:
        return self.opened - self.closed

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.opened += 1
        try:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            self.bodies.append(b"".join([part async for part in request.stream]))
            response = await self._answer(request)
        except BaseException:
            self.closed += 1
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Counted(self, response.stream)
        return response

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=self, base_url="http://upstream.example:8765")


class _Counted(httpx.AsyncByteStream):
    def __init__(self, upstream: InMemoryUpstream, stream: httpx.AsyncByteStream) -> None:
        self._upstream = upstream
        self._stream = stream
        self._chunks = aiter(stream)
        self._is_open = True

    # No generators in here: trio warns of each that is not closed, however deep it is nested.
    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await anext(self._chunks)
        self._upstream.chunks_read += 1
        return chunk

    async def aclose(self) -> None:
        if self._is_open:
            self._is_open = False
            if self._upstream.closing_waits:
                # As httpcore's: a close that is cancelled at its first wait closes nothing.
                await anyio.lowlevel.checkpoint()
            self._upstream.closed += 1
            await self._stream.aclose()
            await anyio.lowlevel.checkpoint()


class Script(httpx.AsyncByteStream):
    """A body by a script: bytes are sent, numbers are seconds to wait, exceptions are raised."""

    def __init__(self, *steps: bytes | float | Exception) -> None:
        self._steps = iter(steps)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for step in self._steps:
            await anyio.lowlevel.checkpoint()
            if isinstance(step, bytes):
                return step
            if isinstance(step, Exception):
                raise step
            await anyio.sleep(step)
        raise StopAsyncIteration


def answering(
    *steps: bytes | float | Exception,
    status: int = 200,
    headers: RawHeaders = (),
    before: float = 0,
    failing: Exception | None = None,
) -> InMemoryUpstream:
    """An upstream that gives every request the same answer, `before` seconds after it came."""

    async def answer(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(before)
        if failing is not None:
            raise failing
        return httpx.Response(status, headers=list(headers), stream=Script(*steps))

    return InMemoryUpstream(answer)


class Caller:
    """A caller and its server: calls an ASGI app, and keeps what the app sent."""

    def __init__(
        self,
        method: str = "GET",
        *,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: Sequence[bytes] = (),
        body_is_whole: bool = True,
        send_fails_after: int | None = None,
        leaves_after: float | None = None,
        leaves_at_body: bool = False,
    ) -> None:
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "headers": list(headers),
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        self.messages: list[Message] = []
        self.left = anyio.Event()
        self._faults: list[Message] = []
        self._parts = [
            {
                "type": "http.request",
                "body": part,
                "more_body": not body_is_whole or index < len(body) - 1,
            }
            for index, part in enumerate(body or [b""])
        ]
        self._send_fails_after = send_fails_after
        self._leaves_after = leaves_after
        self._leaves_at_body = leaves_at_body

    async def receive(self) -> Message:
        await anyio.lowlevel.checkpoint()
        if self._parts:
            return self._parts.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        if self._send_fails_after is not None and len(self.messages) >= self._send_fails_after:
            raise OSError("the connection is gone")
        if message["type"] not in ("http.response.start", "http.response.body"):
            # What servers do with a message that they do not know.
            raise ValueError(f"unknown message {message['type']}")
        if self.complete or (message["type"] == "http.response.start") == bool(self.messages):
            self._faults.append(message)  # told of in `call`: the app may swallow what is raised
        self.messages.append(message)
        if message.get("body") and self._leaves_at_body:
            self.left.set()
        if self.complete:
            # Some servers report a disconnect as soon as the response is complete.
            self.left.set()

    async def call(self, app: ASGIApp) -> "Caller":
        async with anyio.create_task_group() as group:
            if self._leaves_after is not None:
                group.start_soon(self._leave, self._leaves_after)
            failure: Exception | None = None
            try:
                await app(self.scope, self.receive, self.send)
            except Exception as exc:
                failure = exc
            group.cancel_scope.cancel()
        assert not self._faults, "messages out of order"
        if failure is not None:
            raise failure
        return self

    async def _leave(self, after: float) -> None:
        await anyio.sleep(after)
        self.left.set()

    @property
    def parts_left(self) -> int:
        return len(self._parts)

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(bytes(name), bytes(value)) for name, value in self.messages[0]["headers"]]

    def values(self, name: str) -> list[str]:
        return [value.decode() for key, value in self.headers if key == name.encode()]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def complete(self) -> bool:
        return len(self.messages) > 1 and not self.messages[-1].get("more_body", False)


def collect_garbage() -> None:
    """Collect the youngest garbage, so that warnings of a leak belong to the test at fault."""
    gc.collect(1)
