"""Runs an asyncio stream server on loopback in a thread beside the test."""

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeAlias

Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]

BACKLOG = 2048
"""Maximum number of connections that wait to be accepted."""


def listen() -> socket.socket:
    """Return a socket that listens on a free port of 127.0.0.1.

    asyncio sets TCP_NODELAY only on a socket that was made with the number of its protocol, which
    `socket.create_server` leaves out. Without the option, a body that is sent after its head waits
    40 ms for the client's delayed acknowledgement.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.bind(("127.0.0.1", 0))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


class LoopbackServer:
    """Calls a function for each connection while the context is entered."""

    def __init__(self, serve: Serve, tls: ssl.SSLContext | None = None) -> None:
        self._serve, self._tls = serve, tls

    def __enter__(self) -> Self:
        self._socket = listen()
        self.port: int = self._socket.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(ready)), name="upstream", daemon=True
        )
        self._thread.start()
        ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self.loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    async def _run(self, ready: threading.Event) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._serve, sock=self._socket, ssl=self._tls)
        # Errors of client connections are not failures of the test.
        self.loop.set_exception_handler(lambda loop, context: None)
        ready.set()
        await self._stopping.wait()
        server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in connections:
            task.cancel()
        await asyncio.wait(connections, timeout=5) if connections else None


def reset(writer: asyncio.StreamWriter) -> None:
    """Close the connection with an RST."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
