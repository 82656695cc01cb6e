"""The servers, as real processes, and a caller of raw sockets."""

import contextlib
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
APP = "tests.support.apps.relay_app:app"
GRACE = 2

COMMANDS: dict[str, list[str]] = {
    "uvicorn-h11": ["uvicorn", "--http", "h11", "--loop", "asyncio"],
    "uvicorn-httptools": ["uvicorn", "--http", "httptools", "--loop", "uvloop"],
    "hypercorn-asyncio": ["hypercorn", "--worker-class", "asyncio"],
    "hypercorn-trio": ["hypercorn", "--worker-class", "trio"],
    "granian": ["granian", "--interface", "asgi", "--workers", "1"],
}
# Started where a test is about its workers; all else in it is uvicorn's.
GUNICORN = "gunicorn"
GUNICORN_AS_IT_COMES = "gunicorn, uvicorn-worker as it comes"
WORKER_CLASSES = {
    GUNICORN: "tests.support.gunicorn_worker.Worker",
    GUNICORN_AS_IT_COMES: "uvicorn_worker.UvicornWorker",
}
# The same with AsyncioTransport in the app's clients.
ON_ASYNCIO_TRANSPORT = [f"{name}+asyncio" for name in COMMANDS if name != "hypercorn-trio"]


def free_port() -> int:
    """Return a port that no other test, in any process, is given while this process lives.

    The system gives none of these ports to a connection, or to a socket bound to port 0, and
    Chromium refuses some below them, such as 10080. A UDP socket on the port of the same number
    reserves it, and is closed when the process ends.
    """
    while True:
        port = secrets.choice(range(11_000, 32_000))
        with (
            contextlib.suppress(OSError),
            socket.socket(type=socket.SOCK_DGRAM) as reservation,
            socket.socket() as probe,
        ):
            reservation.bind(("127.0.0.1", port))
            probe.bind(("127.0.0.1", port))
            reservation.detach()
            return port


class Server:
    """The app under one server."""

    def __init__(
        self,
        name: str,
        upstream_url: str,
        *,
        app: str = APP,
        options: Sequence[str] = (),
        grace: int | None = GRACE,
        dev_mode: bool = True,
    ) -> None:
        name, _, transport = name.partition("+")
        self.name, self.transport = name, transport
        self.port = free_port()
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        command = COMMANDS.get(name, [])
        if name.startswith("uvicorn"):
            address += ["--no-proxy-headers", "--no-access-log"]
            grace_option = "--timeout-graceful-shutdown"
        elif name.startswith("hypercorn"):
            address = ["--bind", f"127.0.0.1:{self.port}"]
            grace_option = "--graceful-timeout"
        elif name in WORKER_CLASSES:
            command = ["gunicorn", "--no-control-socket", "--worker-class", WORKER_CLASSES[name]]
            address = ["--bind", f"127.0.0.1:{self.port}"]
            grace_option = "--graceful-timeout"
            if name == GUNICORN and grace is not None:
                grace += 3  # GRACE is the worker's
        else:
            address += ["--backpressure", "2000"]
            grace_option = "--workers-kill-timeout"
        if grace is not None:
            address += [grace_option, str(grace)]
        address += options
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed in stop()
        self.process = subprocess.Popen(
            [sys.executable, *(["-X", "dev"] * dev_mode), "-m", *command, *address, app],
            cwd=ROOT,
            env=os.environ
            | {
                "UPSTREAM_URL": upstream_url,
                "TRANSPORT": transport or os.environ.get("TRANSPORT", ""),
                "PYTHONPATH": f"{ROOT}/src",
                "PYTHONWARNINGS": "ignore",
            },
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, to end its workers with it
        )
        try:
            eventually(self._answers)
        except BaseException:
            self._kill()
            raise AssertionError(self.log()) from None
        self.pid: int = self.state()["pid"]

    def _answers(self) -> bool:
        try:
            return bool(self.state())
        except OSError:
            assert self.process.poll() is None
            return False

    def log(self) -> str:
        if not self._log.closed:
            self._text = os.pread(self._log.fileno(), 10_000_000, 0).decode(errors="replace")
        return self._text

    def stop(self) -> float:
        """SIGTERM; the seconds until the process ended."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(GRACE + 8)
        finally:
            self._kill()
            self.process.wait()
            self.log()
            self._log.close()
        return time.monotonic() - start

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def state(self) -> Any:
        return json.loads(SocketCaller(self, "/state").read().split(b"\r\n\r\n", 1)[1])

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


class SocketCaller:
    """One request on one socket."""

    open: ClassVar[list["SocketCaller"]] = []

    def __init__(
        self,
        server: Server,
        path: str,
        *,
        method: str = "GET",
        fields: str = "",
        body: bytes = b"",
        **options: Any,
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        head = f"{method} {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n"
        head += f"x-options: {json.dumps(options)}\r\n{fields}\r\n"
        self.socket.sendall(head.encode() + body)
        SocketCaller.open.append(self)

    def read(self, until: bytes | None = None) -> bytes:
        """All that comes until the end of the connection, or until some bytes have come."""
        data = b""
        while until is None or until not in data:
            try:
                part = self.socket.recv(65536)
            except ConnectionResetError:
                break
            if not part:
                break
            data += part
        if until is None:
            self.socket.close()
        return data

    def read_bytes(self, count: int) -> None:
        """Read so many bytes or some more, and forget them."""
        while count > 0:
            count -= len(self.socket.recv(65536))

    def leave(self, *, reset: bool = False) -> None:
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()


class Answer:
    """A response off the wire, and whether it says that it is whole."""

    def __init__(self, data: bytes) -> None:
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        self.status = int(lines[0].split(b" ")[1]) if lines[0] else 0
        self.fields = [
            (name.strip().lower(), value.strip())
            for name, _, value in (line.partition(b":") for line in lines[1:])
        ]
        self.body, self.complete = rest, True
        if self.field(b"transfer-encoding") == b"chunked":
            self.body, self.complete = self._chunks(rest)
        elif (length := self.field(b"content-length")) is not None:
            self.complete = len(rest) == int(length)

    def field(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.fields if key == name), None)

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]

    @staticmethod
    def _chunks(rest: bytes) -> tuple[bytes, bool]:
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size or b"0", 16)
            if length == 0:
                return body, rest == b"\r\n"
            body, rest = body + rest[:length], rest[length + 2 :]
        return body, False


def ask(server: Server, path: str, **arguments: Any) -> Answer:
    return Answer(SocketCaller(server, path, **arguments).read())


NOISE = ("never retrieved", "was destroyed", "loop is closed", "was never awaited")
