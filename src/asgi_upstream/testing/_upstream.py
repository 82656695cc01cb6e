"""A real server on loopback, in a thread of its own, that answers as scripted and counts."""

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

_LONGEST_HEAD = 4 << 20


class Upstream:
    """An upstream for a test, sync or async, on any event loop.

        with Upstream() as upstream:
            upstream.get("/item").json({"name": "lamp"})
            upstream.get("/events").events("one", "two", every=0.1).reset(after=20)
            upstream.post("/orders").status(503).then.json({"id": 1}, status=201)

    A path is as it is sent, with nothing decoded; one with a query answers only that query. A HEAD
    that is not scripted is answered by the head of the GET. What nothing is scripted for is
    answered 501, with a text that says so.

    Arguments:
        tls: to serve HTTPS.

    Attributes:
        requests: what it got, in the order in which the heads were there.
        connections: how many sockets are open.
        accepted: how many there have been.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[ReceivedRequest] = []
        self.open_connections: int = 0
        self.total_connections: int = 0
        self.port: int = 0
        self._tls = tls
        self._listening = LoopbackServer(self._connection, tls)
        self._answers: dict[tuple[str | None, str | None], ScriptedResponse] = {}
        self._under_way: dict[int, ReceivedRequest] = {}

    # The script.

    def get(self, path: str) -> ScriptedResponse:
        return self.request("GET", path)

    def post(self, path: str) -> ScriptedResponse:
        return self.request("POST", path)

    def put(self, path: str) -> ScriptedResponse:
        return self.request("PUT", path)

    def patch(self, path: str) -> ScriptedResponse:
        return self.request("PATCH", path)

    def delete(self, path: str) -> ScriptedResponse:
        return self.request("DELETE", path)

    def any(self, path: str | None = None) -> ScriptedResponse:
        """Every method; without a path, everything that is not scripted otherwise."""
        return self.request(None, path)

    def request(self, method: str | None, path: str | None) -> ScriptedResponse:
        """Begin the answer to such requests, in place of one that was scripted before."""
        if path is not None and not path.startswith(("/", "http://", "https://", "*")):
            raise ValueError(f"path={path!r}: a path begins with a slash")
        answer = self._answers[method, path] = ScriptedResponse()
        return answer

    def answer_to(self, request: ReceivedRequest) -> ScriptedResponse:
        """What is scripted for a request; its turn is then over."""
        methods = [request.method, *(["GET"] if request.method == "HEAD" else []), None]
        paths = [request.target, request.path, None]
        for key in [(method, path) for path in paths for method in methods]:
            if key in self._answers:
                answer = self._answers[key]
                self._answers[key] = answer.next
                return answer
        scripted = ", ".join(f"{method or 'any'} {path}" for method, path in self._answers)
        return ScriptedResponse().text(
            f"nothing is scripted for {request.method} {request.target}, "
            f"but for: {scripted or 'nothing'}\n",
            status=501,
        )

    # What can be asked of it.

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def open_exchanges(self) -> int:
        """How many exchanges are under way: from the head of a request to the answer's end."""
        return len(self._under_way)

    def under_way(self) -> list[ReceivedRequest]:
        """The requests of the exchanges that are open."""
        return list(self._under_way.values())

    # The server.

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
            pass  # it is gone, or what it sends is no request, or the upstream stops
        finally:
            connection.close()
            self.open_connections -= 1

    async def _exchange(self, connection: "_Connection") -> bool:
        """Read one request and answer it; whether another may follow."""
        head = await connection.received.readuntil(b"\r\n\r\n")
        if head.split(b"\r\n", 1)[0].count(b" ") != 2:
            return False
        request = ReceivedRequest(head, connection.number)
        self.requests.append(request)
        self._under_way[id(request)] = request
        try:
            scripted = self.answer_to(request)
            if not scripted.is_early:
                await connection.read_request_body(request)
            answer = scripted.resolve(request)
            whole = await connection.answer(request, answer)
            if scripted.is_early and whole:
                await request.read_body(connection.received)
        finally:
            del self._under_way[id(request)]
        wants_more = request.headers.get("connection", "").lower() != "close"
        return whole and wants_more and not answer.closes


class _Connection:
    """Reads all the time, so that it sees at any moment when the other side leaves."""

    def __init__(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number = number
        self.received = asyncio.StreamReader(limit=_LONGEST_HEAD)
        self._writer = writer
        writer.transport.set_write_buffer_limits(1, 0)  # so that what is sent has left
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

    async def answer(self, request: ReceivedRequest, answer: ScriptedResponse) -> bool:
        """Do as the answer says; whether it came to its end."""
        acting = asyncio.create_task(self._run_script(request, answer))
        try:
            await asyncio.wait([acting, self._reading], return_when=asyncio.FIRST_COMPLETED)
        finally:
            acting.cancel()
            await asyncio.wait([acting])
        # It failed where the connection did.
        request.disconnected = acting.cancelled() or acting.exception() is not None
        return not request.disconnected and acting.result()

    async def _run_script(self, request: ReceivedRequest, answer: ScriptedResponse) -> bool:
        for step in answer.steps(request):
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
        await asyncio.sleep(0)  # or one who reads fast would keep all others waiting

    def close(self) -> None:
        self._reading.cancel()
        with contextlib.suppress(Exception):
            self._writer.close()
