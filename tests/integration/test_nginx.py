"""A real nginx as the upstream."""

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_upstream import fetch
from tests.support.flavor import client_lifespan
from tests.support.nginx import needs_nginx, running_nginx
from tests.support.servers import Server, ask, free_port
from tests.support.waiting import eventually

pytestmark = [*needs_nginx, pytest.mark.serial]

CONFIG = """
    gzip on; gzip_types *; gzip_min_length 1; keepalive_requests 3;
    server {{ listen 127.0.0.1:{port}; root {folder}; }}
    server {{ listen 127.0.0.1:{h2_port} http2; root {folder}; }}
"""


@pytest.fixture(scope="module")
def h2_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, h2_port: int) -> Iterator[tuple[Server, Path]]:
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    (folder / "big").write_bytes(os.urandom(5_000_000))
    (folder / "small").write_bytes(b"0123456789" * 10)
    with running_nginx(folder, CONFIG.format(folder=folder, port=port, h2_port=h2_port)):
        server = Server("uvicorn-httptools", f"http://127.0.0.1:{port}")
        try:
            eventually(lambda: ask(server, "/plain/streamed/small").status == 200)
            yield server, folder
        finally:
            server.stop()


def test_a_file_arrives_whole(app: tuple[Server, Path]) -> None:
    server, folder = app
    answer = ask(server, "/plain/streamed/big", decode=True)
    assert (answer.status, answer.complete) == (200, True)
    expected = hashlib.sha256((folder / "big").read_bytes()).digest()
    assert hashlib.sha256(answer.body).digest() == expected


def test_what_nginx_compressed_is_relayed_compressed_or_decoded(app: tuple[Server, Path]) -> None:
    server, _ = app
    assert ask(server, "/plain/streamed/small").field(b"content-encoding") == b"gzip"
    decoded = ask(server, "/plain/buffered/small", decode=True)
    assert (decoded.body, decoded.field(b"content-length")) == (b"0123456789" * 10, b"100")
    assert (decoded.field(b"etag") or b"").startswith(b"W/")


def test_connection_that_nginx_ends_is_not_an_error(
    app: tuple[Server, Path],
) -> None:
    server, _ = app
    for _ in range(20):
        assert ask(server, "/plain/streamed/small").status == 200


@pytest.mark.usefixtures("app")
def test_goaway_after_three_requests_breaks_no_response(h2_port: int) -> None:
    async def get_many() -> list[int]:
        options: dict[str, Any] = {"http1": False, "http2": True}
        async with client_lifespan(base_url=f"http://127.0.0.1:{h2_port}", **options)(
            None
        ) as state:
            client: Any = state["client"]
            requests = [client.build_request("GET", "/big") for _ in range(20)]
            responses = await asyncio.gather(*(fetch(client, request) for request in requests))
            return [len(response.content) for response in responses]

    assert asyncio.run(get_many()) == [5_000_000] * 20
