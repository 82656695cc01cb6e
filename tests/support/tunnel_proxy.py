"""An HTTP proxy that opens tunnels and forwards nothing, as many do for WebSockets."""

import asyncio
import ssl

from tests.support.raw_upstream import RawUpstream, read_request


class TunnelProxy(RawUpstream):
    """Connects each tunnel to `upstream_port`, whatever host the CONNECT names.

    Attributes:
        upstream_port: The port on loopback, to be set before the first request.
    """

    upstream_port: int

    def __init__(
        self, *, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n", tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(self._open_tunnel, tls=tls)
        self._answer = answer

    @property
    def request_lines(self) -> list[bytes]:
        return [request.split(b"\r\n")[0] for request in self.requests]

    async def _open_tunnel(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.requests.append(await read_request(reader))
        if not self.requests[-1].startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 405 Only CONNECT\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return
        writer.write(self._answer)
        if b" 200 " not in self._answer:
            await writer.drain()
            return
        near, far = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        try:
            await asyncio.gather(_copy(reader, far), _copy(near, writer))
        finally:
            far.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
