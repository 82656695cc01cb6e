"""The upstream of a soak: it does what each plan says, and counts from outside.

Not the testing kit's, which keeps all that it got: this one takes gigabytes, or does not read.
"""

import asyncio
import contextlib
import hashlib
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from .plan import Plan

ESTABLISHED = 1  # of Linux's tcp(7)


@dataclass
class SoakUpstream:
    """The server, in the event loop of whoever enters it.

    Attributes:
        open: the number of exchanges under way, by that of their plan.
        connections: that are open.
        seen: the numbers of the plans that came.
        taken: whole uploads, by the number of their plan: their digest.
    """

    open: Counter[int] = field(default_factory=Counter)
    connections: int = 0
    seen: set[int] = field(default_factory=set)
    taken: dict[int, str] = field(default_factory=dict)
    port: int = 0

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.connections -= 1
            self._tasks.discard(task)
            with contextlib.suppress(OSError):
                writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One of them; whether another may follow on this connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        plan = Plan.of(head.split(b" ", 2)[1].decode())
        self.seen.add(plan.number)
        self.open[plan.number] += 1
        try:
            acting = asyncio.ensure_future(self._act(plan, head, reader, writer))
            gone = asyncio.ensure_future(_gone(writer))
            await asyncio.wait([acting, gone], return_when=asyncio.FIRST_COMPLETED)
            whole = acting.done() and not acting.cancelled() and acting.exception() is None
            acting.cancel()
            gone.cancel()
            await asyncio.gather(acting, gone, return_exceptions=True)
            return whole and acting.result()
        finally:
            self.open[plan.number] -= 1
            self.open += Counter()  # forgets those at 0

    async def _act(
        self, plan: Plan, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        if plan.fate == "stall_upload":
            # Not for ever: as long as it reads nothing, not even the end of the connection comes.
            await asyncio.sleep(4)
            await _upload(head.lower(), reader)
            await asyncio.sleep(3600)
        if plan.fate in ("refuse", "early"):
            await _write(writer, _head(plan), plan.body)
            if plan.fate == "refuse":
                await asyncio.sleep(0.5)
                return False
        if plan.method not in ("GET", "HEAD"):
            self.taken[plan.number] = await _upload(head.lower(), reader)
        if plan.fate == "early":
            return True
        return await self._answer(plan, writer)

    async def _answer(self, plan: Plan, writer: asyncio.StreamWriter) -> bool:
        kind, _, when = plan.fate.partition("_")
        if kind == "never" or plan.fate == "stall_before":
            await asyncio.sleep(3600)
        if when != "before":
            await _write(writer, _head(plan))
        if kind in ("drip", "pour"):
            body = Plan(number=plan.number, size=64 << 10).body
            while True:
                await _write(writer, b"10000\r\n" if kind == "pour" else b"64\r\n")
                await _write(writer, body if kind == "pour" else body[:100], b"\r\n")
                await asyncio.sleep(0 if kind == "pour" else 0.02)
        elif when == "mid":
            await _pieces(plan, plan.body[: plan.cut], writer)
            await asyncio.sleep(0.05)
        elif plan.fate == "whole" and plan.method != "HEAD":
            await _pieces(plan, plan.body, writer)
            if plan.framing == "chunked":
                await _write(writer, b"0\r\n\r\n")
        if kind == "stall":
            await asyncio.sleep(3600)
        elif kind == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        return plan.fate == "whole" and plan.framing != "close"


def _head(plan: Plan) -> bytes:
    status = "413 Too Large" if plan.fate == "refuse" else "200 OK"
    kind = "text/event-stream" if plan.pause else "application/octet-stream"
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"x-number: {plan.number}"]
    if plan.fate in ("drip", "pour") or plan.framing == "chunked":
        lines.append("transfer-encoding: chunked")
    elif plan.framing == "length":
        lines.append(f"content-length: {plan.size}")
    else:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode()


async def _pieces(plan: Plan, body: memoryview, writer: asyncio.StreamWriter) -> None:
    for at in range(0, len(body), plan.piece):
        piece = body[at : at + plan.piece]
        if plan.framing == "chunked":
            await _write(writer, b"%x\r\n" % len(piece), piece, b"\r\n")
        else:
            await _write(writer, piece)
        if plan.pause:
            await asyncio.sleep(plan.pause)


async def _write(writer: asyncio.StreamWriter, *parts: bytes | memoryview) -> None:
    writer.writelines(parts)
    await writer.drain()


async def _upload(head: bytes, reader: asyncio.StreamReader) -> str:
    """Read the body of a request to its end; its digest."""
    digest = hashlib.sha256()

    async def take(left: int) -> None:
        while left:
            part = await reader.read(min(left, 65536))
            if not part:
                raise asyncio.IncompleteReadError(b"", left)
            digest.update(part)
            left -= len(part)

    if b"\r\ntransfer-encoding: chunked" in head:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await take(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    elif b"\r\ncontent-length: " in head:
        await take(int(head.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0]))
    return digest.hexdigest()


async def _gone(writer: asyncio.StreamWriter) -> None:
    """The relay has closed, also where nobody reads: a stream would not tell of its end."""
    sock = writer.get_extra_info("socket")
    while not writer.is_closing() and _state(sock) == ESTABLISHED:
        await asyncio.sleep(0.02)


def _state(sock: socket.socket) -> int:
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return 0
