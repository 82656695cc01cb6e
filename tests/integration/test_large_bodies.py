"""Bodies far larger than the app may grow: a quarter of a gigabyte, or `LARGE_BODY_GB=5`."""

import os
import socket
import threading
from collections.abc import Iterator
from typing import Self

import pytest

from tests.support.servers import Answer, Server

GB = float(os.environ.get("LARGE_BODY_GB", "0.25"))
SIZE = int(GB * (1 << 30)) // 65536 * 65536
MOST_GROWTH = 64 << 20


class Sink:
    """An upstream that counts the bytes of one body, keeps none, and answers with the number."""

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listening.close()
        self._thread.join(50)

    def _serve(self) -> None:
        with self._listening.accept()[0] as connection:
            data, buffer = b"", bytearray(1 << 20)
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            head, _, rest = data.partition(b"\r\n\r\n")
            got, chunked = len(rest), b"chunked" in head.lower()
            end = rest[-5:]
            while got < SIZE or (chunked and end != b"0\r\n\r\n"):
                count = connection.recv_into(buffer)
                if not count:
                    return
                got += count
                end = (end + bytes(buffer[max(0, count - 5) : count]))[-5:]
            body = b"chunked" if chunked else b"%d" % got
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


@pytest.fixture(params=["uvicorn-httptools", "hypercorn-trio"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Sink]]:
    with Sink() as sink:
        server = Server(request.param, sink.url)
        try:
            yield server, sink
        finally:
            server.stop()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upload_of_any_size_passes_in_constant_memory(
    server: tuple[Server, Sink], framing: str
) -> None:
    app, _ = server
    before, most = app.memory(), 0
    field = f"content-length: {SIZE}" if framing == "length" else "transfer-encoding: chunked"
    block = bytes(65536) if framing == "length" else b"10000\r\n" + bytes(65536) + b"\r\n"
    with socket.create_connection(("127.0.0.1", app.port), timeout=60) as connection:
        head = f"POST /forward/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{field}\r\n\r\n"
        connection.sendall(head.encode())
        for number in range(SIZE // 65536):
            connection.sendall(block)
            if number % 500 == 0:
                most = max(most, app.memory())
        if framing == "chunked":
            connection.sendall(b"0\r\n\r\n")
        data = b""
        while part := connection.recv(65536):
            data += part
    answer = Answer(data)
    assert answer.status == 200
    assert answer.body == (b"chunked" if framing == "chunked" else b"%d" % SIZE)
    assert most - before < MOST_GROWTH
