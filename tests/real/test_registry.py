"""A push of an image's layer in chunks, as Docker's and its kin's clients do it."""

import hashlib
import http.client
import threading
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from tests.integration.servers import Server

MB = 1 << 20
MOST_GROWTH = 48 * MB


class Push:
    """The upload of one blob: each answer names the address of the next chunk."""

    def __init__(self, server: Server, prefix: str = "/web") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._location = f"{prefix}/v2/app/blobs/uploads/"
        self._digest = hashlib.sha256()
        self.length = 0

    def ask(self, method: str, body: bytes = b"", **fields: str) -> int:
        self._connection.request(method, self._location, body or None, fields)
        answer = self._connection.getresponse()
        answer.read()
        if location := answer.headers.get("location"):
            url = urlsplit(location)
            assert url.netloc in ("", f"127.0.0.1:{self._connection.port}"), location
            self._location = url.path + (f"?{url.query}" if url.query else "")
        return answer.status

    def chunk(self, data: bytes) -> int:
        last = self.length + len(data) - 1
        fields = {"Content-Range": f"{self.length}-{last}"}
        fields["Content-Type"] = "application/octet-stream"
        status = self.ask("PATCH", data, **fields)
        self._digest.update(data)
        self.length += len(data)
        return status

    def finish(self) -> int:
        self._location += f"&digest=sha256:{self._digest.hexdigest()}"
        return self.ask("PUT")

    def close(self) -> None:
        self._connection.close()


def push(server: Server, total: int, chunk: int) -> int:
    """Push so many bytes; how much the memory of the relay grew at most."""
    before, most, over = server.memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, server.memory() - before)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with closing(Push(server)) as upload:
            assert upload.ask("POST") == 202
            data = bytes(range(256)) * (chunk // 256)
            for _ in range(total // chunk):
                assert upload.chunk(data) == 202
            assert upload.finish() == 201
            assert upload.ask("HEAD") == 200  # at the address of the blob, which it was told
    finally:
        over.set()
        watching.join()
    return most


def test_a_layer_of_64_mb_is_pushed_in_chunks_in_constant_memory(relay: Server) -> None:
    push(relay, 16 * MB, 4 * MB)  # so that what stays from the first time is there
    assert push(relay, 64 * MB, 16 * MB) < MOST_GROWTH


@pytest.mark.slow
def test_a_layer_of_1_gb_is_pushed_in_chunks_in_constant_memory(relay: Server) -> None:
    push(relay, 16 * MB, 4 * MB)
    assert push(relay, 1024 * MB, 64 * MB) < MOST_GROWTH


def test_a_chunk_out_of_order_is_refused_as_the_registry_refuses_it(relay: Server) -> None:
    with closing(Push(relay)) as upload:
        assert upload.ask("POST") == 202
        assert upload.chunk(b"a" * 1000) == 202
        upload.length = 5000
        assert upload.chunk(b"b" * 1000) == 416


def test_without_rewritten_redirects_the_address_of_the_upload_is_the_registrys_own(
    relay: Server,
) -> None:
    with (
        closing(Push(relay, "/as-it-comes")) as upload,
        pytest.raises(AssertionError, match="http://127"),
    ):
        upload.ask("POST")
