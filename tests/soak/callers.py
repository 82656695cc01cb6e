"""The callers: they carry plans out, on raw sockets, and say what they have seen."""

import asyncio
import contextlib
import hashlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httptools

from .plan import Plan

MOST = 40.0
"""Seconds that no exchange takes."""


@dataclass
class Seen:
    """What a caller saw of one exchange.

    Attributes:
        status: 0 where no head came.
        complete: whether the response said that it is whole.
        length, digest: of the body that came.
        tail: its last bytes.
        stray: bytes behind the response.
        reset: the connection was reset.
        reused: the connection had served another exchange before.
        hung: nothing ended it in `MOST` seconds.
        to_head: seconds from the request to the response's head.
    """

    status: int = 0
    fields: dict[bytes, bytes] = field(default_factory=dict)
    complete: bool = False
    length: int = 0
    tail: bytes = b""
    stray: bool = False
    reset: bool = False
    hung: bool = False
    reused: bool = False
    to_head: float = 0.0
    _hash: "hashlib._Hash" = field(default_factory=hashlib.sha256, repr=False)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def add(self, data: bytes) -> None:
        self._hash.update(data)
        self.length += len(data)
        self.tail = (self.tail + data)[-100:]


class Reading:
    """Takes a response apart, for httptools."""

    def __init__(self, seen: Seen, *, is_head: bool) -> None:
        self._seen = seen
        self._is_head = is_head
        self._start = time.monotonic()
        self._parser = httptools.HttpResponseParser(self)
        self.has_head = asyncio.Event()

    def feed(self, data: bytes) -> None:
        if self._seen.complete:
            self._seen.stray = True
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._seen.stray = True

    def on_message_begin(self) -> None:
        self._seen.stray = self._seen.stray or self._seen.complete

    def on_header(self, name: bytes, value: bytes) -> None:
        self._seen.fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._seen.status = self._parser.get_status_code()
        self._seen.to_head = time.monotonic() - self._start
        self._seen.complete = self._is_head
        self.has_head.set()

    def on_body(self, data: bytes) -> None:
        if self._seen.complete:
            self._seen.stray = True
        else:
            self._seen.add(data)

    def on_message_complete(self) -> None:
        self._seen.complete = True


class SoakCaller:
    """One after the other, on one connection as long as that may be used again."""

    def __init__(self, port: int, has_come: Callable[[int], bool]) -> None:
        self._port = port
        self._has_come = has_come  # a plan of that number to the upstream
        self._socket: socket.socket | None = None
        self._loop = asyncio.get_running_loop()
        self.redone = 0
        """Exchanges that a server closed the idle connection under."""

    async def carry_out(self, plan: Plan) -> Seen:
        seen = Seen(reused=self._socket is not None and not plan.goes_away)
        await self._carry_out(plan, seen)
        if not seen.status and seen.reused and not self._has_come(plan.number) and not seen.hung:
            # A server may close an idle connection at any time (RFC 9112 9.5), and has done so.
            self.redone += 1
            seen = Seen()
            await self._carry_out(plan, seen)
        return seen

    async def _carry_out(self, plan: Plan, seen: Seen) -> None:
        if plan.goes_away or self._socket is None:
            self.close()
            self._socket = await self._connect(small=plan.caller == "dawdles")
        reading = Reading(seen, is_head=plan.method == "HEAD")
        uploading: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(MOST):
                if plan.goes_away and plan.until == "upload":
                    await self._send(plan, reading, int(plan.patience))
                    self._leave(plan)
                    return
                uploading = asyncio.ensure_future(self._send(plan, reading))
                if plan.goes_away and plan.until in ("nothing", "time"):
                    with contextlib.suppress(TimeoutError, OSError):
                        timeout = plan.patience if plan.until == "time" else 0
                        await asyncio.wait_for(asyncio.shield(uploading), 0.1)
                        await asyncio.sleep(timeout)
                    self._leave(plan)
                    return
                await self._read(plan, seen, reading)
        except TimeoutError:
            seen.hung = True
        finally:
            whole = uploading is not None and uploading.done() and not uploading.cancelled()
            if uploading is not None:
                uploading.cancel()
                await asyncio.gather(uploading, return_exceptions=True)
            closes = seen.fields.get(b"connection", b"").lower() == b"close"
            # What of an upload a server has not read may be in front of the next request.
            unread = plan.upload >= 0 and not (plan.fate == "whole" and seen.status == 200)
            if not whole or not seen.complete or closes or unread:
                self.close()

    async def _connect(self, *, small: bool) -> socket.socket:
        sock = socket.socket()
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.setblocking(False)
        await self._loop.sock_connect(sock, ("127.0.0.1", self._port))
        return sock

    async def _send(self, plan: Plan, reading: Reading, most: int | None = None) -> None:
        assert self._socket is not None
        lines = [f"{plan.method} {plan.target} HTTP/1.1", "host: app"]
        if plan.upload_chunked:
            lines.append("transfer-encoding: chunked")
        elif plan.upload >= 0:
            lines.append(f"content-length: {plan.upload}")
        with contextlib.suppress(OSError):  # what the server has to say about it is read
            await self._loop.sock_sendall(self._socket, "\r\n".join([*lines, "", ""]).encode())
            if plan.upload >= 0:
                await self._upload(plan, reading, plan.upload if most is None else most)

    async def _upload(self, plan: Plan, reading: Reading, most: int) -> None:
        assert self._socket is not None
        for at in range(0, most, plan.upload_piece):
            piece = bytes(plan.sent_up[at : min(at + plan.upload_piece, most)])
            if plan.upload_chunked:
                piece = b"%x\r\n%b\r\n" % (len(piece), piece)
            await self._loop.sock_sendall(self._socket, piece)
            if plan.upload_pause:
                await asyncio.sleep(plan.upload_pause)
            if plan.fate == "refuse":  # what is on its way when a server closes makes an RST of it
                await reading.has_head.wait()
                return
        if plan.upload_chunked and most == plan.upload:
            await self._loop.sock_sendall(self._socket, b"0\r\n\r\n")

    async def _read(self, plan: Plan, seen: Seen, reading: Reading) -> None:
        assert self._socket is not None
        slow = 40 if plan.caller == "dawdles" else 0  # so many times
        while not seen.complete:
            try:
                data = await self._loop.sock_recv(self._socket, 4096 if slow else 262144)
            except OSError:
                data, seen.reset = b"", True
            if not data:
                seen.reset = seen.reset or not seen.status
                return
            reading.feed(data)
            if plan.goes_away and seen.length >= plan.patience:
                self._leave(plan)
                return
            if slow:
                slow -= 1
                await asyncio.sleep(0.02)

    def _leave(self, plan: Plan) -> None:
        if self._socket is not None and plan.caller == "resets":
            linger = struct.pack("ii", 1, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
