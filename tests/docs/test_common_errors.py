"""docs/common-errors.md: what each beginning does on a real uvicorn, and what mends it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import h11
import pytest

from tests.support.page_apps import Serve
from tests.support.pages import ROOT, UPSTREAM, files
from tests.support.servers import SocketCaller, ask, free_port
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

CODE = files("docs/common-errors.md")


def test_requests_in_async_def_holds_up_everybody(serve_page: Serve, upstream: Upstream) -> None:
    server = serve_page(CODE["blocking.py"], **{"timeout=5": "timeout=8"})
    slow = SocketCaller(server, "/relay/never")
    eventually(lambda: upstream.open_exchanges == 1)
    health = SocketCaller(server, "/health")
    health.socket.settimeout(1)
    with pytest.raises(TimeoutError):
        health.read(until=b"fine")
    health.socket.settimeout(60)
    assert b"fine" in health.read()  # when `requests` has given up
    slow.leave()


@pytest.mark.parametrize("name", ["session.py", "shared.py"])
def test_a_thread_or_a_description_holds_up_nobody(
    serve_page: Serve, upstream: Upstream, name: str
) -> None:
    server = serve_page(CODE[name])
    slow = SocketCaller(server, "/relay/never")
    eventually(lambda: upstream.open_exchanges == 1)
    assert b"fine" in ask(server, "/health").body
    slow.leave()
    if name == "shared.py":
        eventually(lambda: upstream.open_exchanges == 0)
    else:
        assert upstream.open_exchanges == 1  # the thread has not noticed
        eventually(lambda: upstream.open_exchanges == 0)


def test_a_shared_session_sends_one_callers_cookies_for_the_next(serve_page: Serve) -> None:
    for name, sent in (("session.py", True), ("shared.py", False)):
        server = serve_page(CODE[name])
        ask(server, "/relay/headers")  # sets cookies
        assert (b"cookie: " in ask(server, "/relay/echo").body.lower()) is sent


def test_session_discards_connections_beyond_ten(serve_page: Serve) -> None:
    server = serve_page("import logging\n\nlogging.basicConfig()\n" + CODE["session.py"])
    callers = [SocketCaller(server, "/relay/chunks%3Fcount=3%26delay=0.2") for _ in range(30)]
    for caller in callers:
        caller.read()
    eventually(lambda: "Connection pool is full, discarding connection" in server.log())


PIPELINED = "GET /relay/item HTTP/1.1\r\nhost: app\r\n\r\n"


def test_uvicorn_answers_pipelined_request_after_keep_alive(
    serve_page: Serve,
) -> None:
    """As it did not up to 0.27.0."""
    server = serve_page(CODE["shared.py"], "--timeout-keep-alive", "1")
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        slow = "GET /relay/chunks%3Fcount=20%26delay=0.1 HTTP/1.1\r\nhost: app\r\n\r\n"
        sock.sendall((PIPELINED + slow).encode())
        data = b""
        while b"chunk-19" not in data:
            part = sock.recv(65536)
            assert part, "the connection was closed in the middle of the second answer"
            data += part
    assert data.count(b"HTTP/1.1 200 OK") == 2
    assert "LocalProtocolError" not in server.log()


def test_h11_refuses_to_close_in_the_middle_of_an_exchange() -> None:
    """What uvicorn's timer ran into."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n")
    connection.next_event()
    with pytest.raises(h11.LocalProtocolError) as raised:
        connection.send(h11.ConnectionClosed())
    text = f"h11._util.LocalProtocolError: {raised.value}"
    assert text in (ROOT / "docs/common-errors.md").read_text()


# Programs, not modules: `asyncio.run` and `uvicorn.run` are in them.


class Program:
    port: int

    def __init__(self, code: str, folder: Path, upstream_url: str) -> None:
        self.port = free_port()
        path = folder / "program.py"
        path.write_text(code.replace(UPSTREAM, upstream_url).replace("8000", str(self.port)))
        self._log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            env=os.environ | {"PYTHONPATH": f"{ROOT}/src"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self._log.close()


@pytest.mark.parametrize(
    ("name", "status"), [("two_loops.py", b" 500 "), ("one_loop.py", b" 200 ")]
)
def test_a_connection_of_a_loop_that_is_closed_cannot_be_used(
    upstream: Upstream, tmp_path: Path, name: str, status: bytes
) -> None:
    program = Program(CODE[name], tmp_path, upstream.url)
    try:
        eventually(lambda: "Uvicorn running" in program.log())
        caller = SocketCaller(program, "/item")  # type: ignore[arg-type]
        assert status in caller.read().split(b"\r\n")[0]
        closed = "RuntimeError: Event loop is closed"
        assert (closed in program.log()) is (name == "two_loops.py")
    finally:
        program.stop()


TWICE = """
from fastapi.testclient import TestClient
{use}
    for _ in range(2):
        assert caller.get("/item").status_code == 200
"""


@pytest.mark.parametrize(
    ("name", "use", "fails"),
    [
        ("two_loops.py", "caller = TestClient(app)\nif caller:", True),
        ("one_loop.py", "with TestClient(app) as caller:", False),
    ],
)
def test_a_test_client_without_with_has_a_loop_for_each_request(
    upstream: Upstream, tmp_path: Path, name: str, use: str, fails: bool
) -> None:
    code = CODE[name].split("\n\nif __name__")[0] + TWICE.format(use=use)
    program = Program(code, tmp_path, upstream.url)
    try:
        assert bool(program.process.wait(30)) is fails
        assert ("Event loop is closed" in program.log()) is fails
    finally:
        program.stop()
