"""The servers behind the relays: nginx for bodies, a small server for events and uploads.

Both speak TLS if they get a certificate.
"""

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import trustme
import uvloop

from tests.support.servers import ROOT, free_port
from tests.support.waiting import eventually

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
CONFIG = """
daemon off; pid {folder}/pid; error_log stderr crit; worker_processes 1;
events {{ worker_connections 8192; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
    default_type application/octet-stream;
    client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    server {{ listen 127.0.0.1:{port} backlog=4096 {tls}; root {folder}; }}
}}
"""


class Certificates(NamedTuple):
    """Files: a certificate for 127.0.0.1 with its key, and the authority to trust."""

    server: Path
    authority: Path


@contextmanager
def certificates() -> Iterator[Certificates]:
    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as name:
        files = Certificates(Path(name) / "server.pem", Path(name) / "authority.pem")
        authority.cert_pem.write_to_path(str(files.authority))
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(files.server)
        )
        yield files


@contextmanager
def nginx(sizes: tuple[int, ...], certificate: Path | None = None) -> Iterator[str]:
    """Yield the URL of an nginx that serves a file of each size, named by its size."""
    if NGINX is None:
        raise SystemExit("the benchmark needs nginx as its upstream; install it and try again")
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        folder.chmod(0o755)
        for size in sizes:
            with (folder / str(size)).open("wb") as file:
                file.truncate(size)
        tls, scheme = "", "http"
        if certificate is not None:
            tls, scheme = (
                f"ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate}",
                "https",
            )
        (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, port=port, tls=tls))
        process = subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf"])
        try:
            eventually((folder / "pid").exists, 10)
            yield f"{scheme}://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@contextmanager
def small_server(certificate: Path | None = None) -> Iterator[str]:
    """Yield the URL of `Exchange` below, in a process of its own."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.benchmarks.upstreams",
            *([certificate] if certificate else []),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        scheme = "https" if certificate else "http"
        yield f"{scheme}://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


class Exchange(asyncio.Protocol):
    """GET /events/COUNT/MS: so many events, one each so many milliseconds, in chunks.

    Each has the time of the monotonic clock, in nanoseconds, and some more bytes. POST: reads the
    body and says ok.
    """

    streams = 0

    def __init__(self) -> None:
        self._head = b""
        self._left: float = 0  # bytes of an upload
        self._tail = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._upload(data)
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            return
        self._head = b""
        method, path, _ = head.split(b" ", 2)
        if method == b"POST":
            chunked = b"transfer-encoding: chunked" in head.lower()
            self._left = float("inf") if chunked else int(path.rsplit(b"/", 1)[1])
            self._upload(rest)
        else:
            _, _, count, interval = path.split(b"/")
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
            Exchange.streams += 1
            self._count, self._interval = int(count), int(interval) / 1000
            # Streams do not send in step, as those of real callers do not.
            phase = Exchange.streams * 0.618034 % 1 * self._interval if self._interval < 1 else 0
            self._at(asyncio.get_running_loop().time() + phase)

    def _upload(self, data: bytes) -> None:
        self._left -= len(data)
        self._tail = (self._tail + data[-7:])[-7:]
        if self._left == float("inf"):
            self._left = 0 if self._tail == b"\r\n0\r\n\r\n" else self._left
        if not self._left:
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    def _at(self, when: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, self._event, when)

    def _event(self, when: float) -> None:
        event = b"data: %d %b\n\n" % (time.monotonic_ns(), b"x" * 40)
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._count -= 1
        if self._count:
            self._at(when + self._interval)
        else:
            self._transport.write(b"0\r\n\r\n")


async def serve(certificate: str | None = None) -> None:
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
    server = await asyncio.get_running_loop().create_server(
        Exchange, "127.0.0.1", 0, backlog=4096, ssl=tls
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:]))
