"""An upstream of raw sockets that behaves as its path says, and counts from outside.

`connections` are the sockets that are open, `busy` those with a request under way.
"""

import asyncio
import contextlib
import gzip
import ssl
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from tests.integration.in_thread import InThread, reset

OK = b"HTTP/1.1 200 OK\r\nx-upstream: yes\r\n"
TEXT = OK + b"content-type: application/octet-stream\r\n"


@dataclass
class Exchange:
    """One request that came in, and the connection to answer it on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: bytes
    query: dict[str, str]
    body: bytes = b""

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()

    def reset(self) -> None:
        reset(self.writer)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Behaviour = Callable[[Exchange], Awaitable[None]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(function: Behaviour) -> Behaviour:
    BEHAVIOURS[function.__name__] = function
    return function


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@behaviour
async def item(e: Exchange) -> None:
    body = b"x" * int(e.query.get("size", "1024"))
    await e.write(TEXT + b"content-length: %d\r\n\r\n" % len(body))
    if e.method != "HEAD":
        await e.write(body)


@behaviour
async def chunks(e: Exchange) -> None:
    """`count` chunks, `delay` seconds apart."""
    await e.write(TEXT + b"transfer-encoding: chunked\r\n\r\n")
    for number in range(int(e.query.get("count", "5"))):
        await e.write(chunked(b"chunk-%d;" % number))
        await asyncio.sleep(float(e.query.get("delay", "0")))
    await e.write(b"0\r\n\r\n")


@behaviour
async def echo(e: Exchange) -> None:
    answer = e.head + e.body
    await e.write(TEXT + b"content-length: %d\r\n\r\n" % len(answer) + answer)


@behaviour
async def status(e: Exchange) -> None:
    code = e.query["code"]
    head = f"HTTP/1.1 {code} Whatever\r\nx-upstream: yes\r\n"
    if code not in ("204", "304"):
        head += "content-length: 0\r\n"
    await e.write(head.encode() + b"\r\n")


@behaviour
async def headers(e: Exchange) -> None:
    fields = (
        b"x-twice: 1\r\nX-Twice: 2\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nx-obs: \xe9\r\n"
        b"connection: x-private\r\nx-private: 1\r\nkeep-alive: timeout=5\r\n"
        b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\nserver: inside\r\nproxy-authenticate: x\r\n"
        b"x-empty:\r\n"
    )
    await e.write(OK + fields + b"content-length: 2\r\n\r\nok")


@behaviour
async def never(e: Exchange) -> None:
    await asyncio.sleep(3600)


@behaviour
async def silent_after_head(e: Exchange) -> None:
    await e.write(TEXT + b"transfer-encoding: chunked\r\n\r\n")
    await asyncio.sleep(3600)


@behaviour
async def silent_mid_body(e: Exchange) -> None:
    await e.write(TEXT + b"transfer-encoding: chunked\r\n\r\n" + chunked(b"first"))
    await asyncio.sleep(3600)


@behaviour
async def pour(e: Exchange) -> None:
    """Bytes without end, as fast as they are taken."""
    await e.write(TEXT + b"transfer-encoding: chunked\r\n\r\n")
    block = chunked(b"p" * 65536)
    while True:
        await e.write(block)


@behaviour
async def events(e: Exchange) -> None:
    await e.write(OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await e.write(chunked(b"data: %d\n\n" % time.monotonic_ns()))
        await asyncio.sleep(0.05)


# How an upstream breaks before its headers are complete.


@behaviour
async def close_at_once(e: Exchange) -> None:
    pass


@behaviour
async def reset_at_once(e: Exchange) -> None:
    e.reset()


@behaviour
async def close_in_head(e: Exchange) -> None:
    await e.write(b"HTTP/1.1 200 OK\r\ncontent-ty")


@behaviour
async def no_http(e: Exchange) -> None:
    await e.write(b"220 mail.inside.example ESMTP\r\n")


@behaviour
async def huge_head(e: Exchange) -> None:
    with contextlib.suppress(ConnectionError):
        await e.write(OK + b"x-big: " + b"h" * 2_000_000 + b"\r\ncontent-length: 0\r\n\r\n")


@behaviour
async def switch(e: Exchange) -> None:
    await e.write(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello")
    await asyncio.sleep(3600)


@behaviour
async def odd_status(e: Exchange) -> None:
    await e.write(b"HTTP/1.1 777 Odd\r\ncontent-length: 0\r\n\r\n")


# How an upstream breaks in the middle of a body.


@behaviour
async def short(e: Exchange) -> None:
    await e.write(TEXT + b"content-length: 1000\r\n\r\n" + b"s" * 100)


@behaviour
async def short_chunked(e: Exchange) -> None:
    await e.write(TEXT + b"transfer-encoding: chunked\r\n\r\n" + chunked(b"s" * 100))
    await asyncio.sleep(0.05)


@behaviour
async def reset_mid_body(e: Exchange) -> None:
    await e.write(TEXT + b"transfer-encoding: chunked\r\n\r\n" + chunked(b"s" * 100))
    await asyncio.sleep(0.1)
    e.reset()


@behaviour
async def broken_chunk(e: Exchange) -> None:
    await e.write(TEXT + b"transfer-encoding: chunked\r\n\r\n" + chunked(b"s" * 100))
    await asyncio.sleep(0.05)
    await e.write(b"zz\r\nnot a chunk\r\n")
    await asyncio.sleep(3600)


def _gzip_head(length: int) -> bytes:
    return TEXT + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % length


@behaviour
async def zipped(e: Exchange) -> None:
    body = gzip.compress(b'{"zipped": true}')
    await e.write(_gzip_head(len(body)) + body)


@behaviour
async def broken_gzip(e: Exchange) -> None:
    body = gzip.compress(bytes(range(256)) * 4000)
    half = len(body) // 2
    await e.write(_gzip_head(len(body)) + body[:half] + b"\xff" * (len(body) - half))


@behaviour
async def short_gzip(e: Exchange) -> None:
    body = gzip.compress(bytes(range(256)) * 4000)[:-500]
    await e.write(_gzip_head(len(body)) + body)


@behaviour
async def bomb(e: Exchange) -> None:
    """About 200 KB that unpack to 200 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    megabyte = bytes(1 << 20)
    body = b"".join(packer.compress(megabyte) for _ in range(200)) + packer.flush()
    await e.write(_gzip_head(len(body)) + body)


@dataclass
class Upstream(InThread):
    """The server, in a thread of its own."""

    tls: ssl.SSLContext | None = None
    connections: int = 0
    accepted: int = 0
    busy: int = 0
    requests: list[bytes] = field(default_factory=list)
    sent: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.accepted += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.connections -= 1
            with contextlib.suppress(Exception):
                writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self.busy += 1
        try:
            body = await self._body(head, reader)
            url = urlsplit(head.split(b" ", 2)[1].decode("latin-1"))
            self.requests.append(head + body)
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            action = BEHAVIOURS[url.path.rsplit("/", 1)[-1]]
            exchange = Exchange(reader, writer, head, query, body)
            acting = asyncio.ensure_future(action(exchange))
            gone = asyncio.ensure_future(self._gone(writer))
            await asyncio.wait([acting, gone], return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            acting.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await acting
            return action in KEEPS_ALIVE and not gone.done()
        finally:
            self.busy -= 1

    async def _body(self, head: bytes, reader: asyncio.StreamReader) -> bytes:
        fields = head.lower()
        if b"content-length:" in fields:
            length = int(fields.split(b"content-length:")[1].split(b"\r\n")[0])
            return await reader.readexactly(length)
        body = b""
        if b"transfer-encoding: chunked" in fields:
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        return body

    async def _gone(self, writer: asyncio.StreamWriter) -> None:
        reader = writer.transport.get_protocol()._stream_reader  # type: ignore[attr-defined]
        while not (reader.at_eof() or reader.exception() or writer.transport.is_closing()):
            await asyncio.sleep(0.005)


KEEPS_ALIVE = {item, chunks, echo, status, headers, zipped, broken_gzip, short_gzip, bomb}
