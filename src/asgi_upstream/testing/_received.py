"""A request as the upstream received it, byte for byte."""

import asyncio
import json
from typing import Any

import httpx


class ReceivedRequest:
    """A request, from the moment its head is complete.

    Attributes:
        head: The request line and headers, including the empty line at the end.
        complete: Whether the complete body was received.
        disconnected: Whether the other side disconnected before the response was complete.
        connection: The number of the connection, counted from 0.
    """

    def __init__(self, head: bytes, connection: int) -> None:
        self.head = head
        self.complete: bool = False
        self.disconnected: bool = False
        self.connection = connection
        self._body, self._raw = bytearray(), bytearray(head)

    def __repr__(self) -> str:
        return f"<ReceivedRequest {self.method} {self.target}>"

    @property
    def body(self) -> bytes:
        """The received part of the body, without chunk framing."""
        return bytes(self._body)

    @property
    def raw(self) -> bytes:
        """All received bytes, including chunk framing."""
        return bytes(self._raw)

    @property
    def method(self) -> str:
        """The method, such as "GET"."""
        return self.head.split(b" ", 1)[0].decode("latin-1")

    @property
    def target(self) -> str:
        """Path and query as sent, not decoded."""
        return self.head.split(b"\r\n", 1)[0].split(b" ")[1].decode("latin-1")

    @property
    def path(self) -> str:
        """The path as sent, not decoded."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> httpx.QueryParams:
        """The decoded parameters of the query."""
        return httpx.QueryParams(self.target.partition("?")[2])

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The headers as sent, in order."""
        lines = self.head.split(b"\r\n")[1:-2]
        pairs = (line.partition(b":") for line in lines)
        return [(name, value.strip(b" \t")) for name, _, value in pairs]

    @property
    def headers(self) -> httpx.Headers:
        """The headers, by case-insensitive name."""
        return httpx.Headers(self.fields)

    def json(self) -> Any:
        """Return the body's JSON value."""
        return json.loads(self.body)

    async def read_body(self, reader: asyncio.StreamReader) -> None:
        """Read the body according to its framing (RFC 9112 6).

        Raises:
            EOFError: If the connection closes before the end of the body.
            ConnectionError: If the connection fails before the end of the body.
            ValueError: If the framing is invalid.
        """
        headers = self.headers
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._line(reader)).split(b";")[0], 16):
                await self._content(reader, size)
                await self._line(reader)
            while await self._line(reader) != b"\r\n":  # trailers
                pass
        elif "content-length" in headers:
            await self._content(reader, int(headers["content-length"]))
        self.complete = True

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        line = await reader.readuntil(b"\r\n")
        self._raw += line
        return line

    async def _content(self, reader: asyncio.StreamReader, size: int) -> None:
        while size:
            chunk = await reader.read(min(size, 1 << 20))
            if not chunk:
                raise EOFError
            self._raw += chunk
            self._body += chunk
            size -= len(chunk)
