"""Hypercorn in a thread, with a certificate that trustme made."""

import asyncio
import socket
import ssl
import threading
from pathlib import Path
from typing import Any, Self, cast

import trustme
from hypercorn.asyncio import serve
from hypercorn.config import Config
from starlette.types import ASGIApp

from tests.support.servers import free_port
from tests.support.waiting import eventually


class Certificate:
    """Of a server on this machine."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.file, self.authority = folder / "server.pem", folder / "authority.pem"
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(str(self.file))
        authority.cert_pem.write_to_path(str(self.authority))
        self.trust = ssl.create_default_context(cafile=str(self.authority))


class Hypercorn:
    """An app on hypercorn, by HTTP/2 over TLS, in a thread of its own."""

    def __init__(self, app: ASGIApp, certificate: Certificate) -> None:
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self._app = app
        self.config = Config()
        self.config.bind = [f"127.0.0.1:{self.port}"]
        self.config.certfile = self.config.keyfile = str(certificate.file)
        self.config.graceful_timeout = 1
        self.config.h2_max_concurrent_streams = 200

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        eventually(self._answers)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await serve(cast(Any, self._app), self.config, shutdown_trigger=self._wait)

    async def _wait(self) -> None:
        await self._stop.wait()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True
