"""Runs a scripted HTTP server on loopback in a thread, and counts what it receives."""

import asyncio
import contextlib
import ssl
import weakref
from typing import Self

from ._answers import ScriptedResponse
from ._listening import LoopbackServer, reset
from ._received import ReceivedRequest
from ._steps import Fault, is_data

running_upstreams: "weakref.WeakSet[Upstream]" = weakref.WeakSet()

_MAX_HEAD_SIZE = 4 * 1024 * 1024


class Upstream:
    """An upstream for sync and async tests, on any event loop.

        with Upstream() as upstream:
            upstream.get("/item").json({"name": "lamp"})
            upstream.get("/events").events("one", "two", every=0.1).reset(after=20)
            upstream.post("/orders").status(503).then.json({"id": 1}, status=201)

    A path matches as it is sent, without decoding. A path with a query matches only that query. A
    HEAD without a script gets the head of the GET. Other requests without a script get a 501 that
    says so.

    Arguments:
        tls: The TLS context to serve HTTPS with.

    Attributes:
        requests: The received requests, in the order in which their heads arrived.
        open_connections: The number of open connections.
        total_connections: The number of connections that were ever accepted.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[ReceivedRequest] = []
        self.open_connections: int = 0
        self.total_connections: int = 0
        self.port: int = 0
        self._tls = tls
        self._listening = LoopbackServer(self._connection, tls)
        self._responses: dict[tuple[str | None, str | None], ScriptedResponse] = {}
        self._open_requests: dict[int, ReceivedRequest] = {}

    # The script

    def get(self, path: str) -> ScriptedResponse:
        """Script the responses to GET requests to this path."""
        return self.request("GET", path)

    def post(self, path: str) -> ScriptedResponse:
        """Script the responses to POST requests to this path."""
        return self.request("POST", path)

    def put(self, path: str) -> ScriptedResponse:
        """Script the responses to PUT requests to this path."""
        return self.request("PUT", path)

    def patch(self, path: str) -> ScriptedResponse:
        """Script the responses to PATCH requests to this path."""
        return self.request("PATCH", path)

    def delete(self, path: str) -> ScriptedResponse:
        """Script the responses to DELETE requests to this path."""
        return self.request("DELETE", path)

    def any(self, path: str | None = None) -> ScriptedResponse:
        """Script the responses to any method. Without a path, to all unscripted requests."""
        return self.request(None, path)

    def request(self, method: str | None, path: str | None) -> ScriptedResponse:
        """Script the responses to a method and path. Replaces an earlier script."""
        if path is not None and not path.startswith(("/", "http://", "https://", "*")):
            raise ValueError(f"path={path!r}: a path starts with a slash")
        response = self._responses[method, path] = ScriptedResponse()
        return response

    def next_response(self, request: ReceivedRequest) -> ScriptedResponse:
        """Return the scripted response to a request, and move on to the one after it."""
        methods = [request.method, *(["GET"] if request.method == "HEAD" else []), None]
        paths = [request.target, request.path, None]
        for key in [(method, path) for path in paths for method in methods]:
            if key in self._responses:
                response = self._responses[key]
                self._responses[key] = response.next
                return response
        scripted = ", ".join(f"{method or 'any'} {path}" for method, path in self._responses)
        return ScriptedResponse().text(
            f"no response is scripted for {request.method} {request.target}; "
            f"scripted: {scripted or 'nothing'}\n",
            status=501,
        )

    # State

    @property
    def url(self) -> str:
        """The base URL, such as "http://127.0.0.1:50000"."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def open_exchanges(self) -> int:
        """The number of exchanges in progress, from the request head to the end of the response."""
        return len(self._open_requests)

    def under_way(self) -> list[ReceivedRequest]:
        """Return the requests of the exchanges in progress."""
        return list(self._open_requests.values())

    # The server

    def __enter__(self) -> Self:
        self.port = self._listening.__enter__().port
        running_upstreams.add(self)
        return self

    def __exit__(self, *exc: object) -> None:
        running_upstreams.discard(self)
        self._listening.__exit__()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self.total_connections, reader, writer)
        self.total_connections += 1
        self.open_connections += 1
        try:
            while await self._exchange(connection):
                pass
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # The client is gone or sent no valid request, or the upstream is stopping.
        finally:
            connection.close()
            self.open_connections -= 1

    async def _exchange(self, connection: "_Connection") -> bool:
        """Read one request and answer it. Return whether the connection stays open."""
        head = await connection.received.readuntil(b"\r\n\r\n")
        if head.split(b"\r\n", 1)[0].count(b" ") != 2:
            return False
        request = ReceivedRequest(head, connection.number)
        self.requests.append(request)
        self._open_requests[id(request)] = request
        try:
            scripted = self.next_response(request)
            if not scripted.is_early:
                await connection.read_request_body(request)
            response = scripted.resolve(request)
            complete = await connection.respond(request, response)
            if scripted.is_early and complete:
                await request.read_body(connection.received)
        finally:
            del self._open_requests[id(request)]
        keep_alive = request.headers.get("connection", "").lower() != "close"
        return complete and keep_alive and not response.closes


class _Connection:
    """Reads all the time, so that it notices at any moment when the other side disconnects."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.received = asyncio.StreamReader(limit=_MAX_HEAD_SIZE)
        self._writer = writer
        writer.transport.set_write_buffer_limits(1, 0)  # `drain` waits until everything is sent.
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(1 << 16):
                self.received.feed_data(data)
        except OSError:
            pass
        finally:
            self.received.feed_eof()

    async def read_request_body(self, request: ReceivedRequest) -> None:
        if request.headers.get("expect", "").lower() == "100-continue":
            await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            await request.read_body(self.received)
        except EOFError:
            request.disconnected = True
            raise

    async def respond(self, request: ReceivedRequest, response: ScriptedResponse) -> bool:
        """Send the response. Return whether it was sent completely."""
        script = asyncio.create_task(self._run_script(request, response))
        try:
            await asyncio.wait([script, self._reading], return_when=asyncio.FIRST_COMPLETED)
        finally:
            script.cancel()
            await asyncio.wait([script])
        request.disconnected = script.cancelled() or script.exception() is not None
        return not request.disconnected and script.result()

    async def _run_script(self, request: ReceivedRequest, response: ScriptedResponse) -> bool:
        for step in response.steps(request):
            if is_data(step):
                await self.send(step)
            elif isinstance(step, Fault) and step.kind != "stall":
                if step.kind == "reset":
                    reset(self._writer)
                return False
            else:
                seconds = step.seconds if isinstance(step, Fault) else step
                await asyncio.sleep(float("inf") if seconds is None else float(seconds))
        return True

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()
        await asyncio.sleep(0)  # Give other connections a chance to run.

    def close(self) -> None:
        self._reading.cancel()
        with contextlib.suppress(Exception):
            self._writer.close()
