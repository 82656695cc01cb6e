"""A request as the upstream got it, byte for byte."""

import asyncio
import json
from typing import Any

import httpx


class ReceivedRequest:
    """One request, from the moment its head was there.

    Attributes:
        head: the request line and the fields, with the empty line that ends them.
        whole: whether the body came to its end.
        left: whether the other side closed the connection before the answer was whole.
        connection: the number of the connection it came on, from 0.
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
        """What has come of the body, without the framing of chunks."""
        return bytes(self._body)

    @property
    def raw(self) -> bytes:
        """All that has come, with the framing."""
        return bytes(self._raw)

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode("latin-1")

    @property
    def target(self) -> str:
        """As it came: path and query, nothing decoded."""
        return self.head.split(b"\r\n", 1)[0].split(b" ")[1].decode("latin-1")

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> httpx.QueryParams:
        return httpx.QueryParams(self.target.partition("?")[2])

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The fields as they came, in their order."""
        lines = self.head.split(b"\r\n")[1:-2]
        pairs = (line.partition(b":") for line in lines)
        return [(name, value.strip(b" \t")) for name, _, value in pairs]

    @property
    def headers(self) -> httpx.Headers:
        """The fields by their names, in any case."""
        return httpx.Headers(self.fields)

    def json(self) -> Any:
        return json.loads(self.body)

    async def read_body(self, reader: asyncio.StreamReader) -> None:
        """Read the body by its framing (RFC 9112 6), and keep what comes.

        Raises:
            EOFError, ConnectionError: it did not come to its end.
            ValueError: its framing is invalid.
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
            part = await reader.read(min(size, 1 << 20))
            if not part:
                raise EOFError
            self._raw += part
            self._body += part
            size -= len(part)
