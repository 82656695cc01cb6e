"""A server on an asyncio event loop in a thread of its own, beside the tests."""

import asyncio
import socket
import ssl
import struct
import threading
from typing import Self


def reset(writer: asyncio.StreamWriter) -> None:
    """Close it so that the peer gets an RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class InThread:
    """Listens on `port` of the loopback while it is entered."""

    tls: ssl.SSLContext | None = None
    port: int = 0
    _loop: asyncio.AbstractEventLoop

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def main() -> None:
            self._stop = asyncio.Event()
            server = await asyncio.start_server(
                self._connection, "127.0.0.1", 0, ssl=self.tls, backlog=2048
            )
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._stop.wait()
            server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=5)
            await asyncio.sleep(0)  # in which transports close their sockets

        self._loop.set_exception_handler(lambda loop, context: None)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(main(),))
        self._thread.start()
        ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()
