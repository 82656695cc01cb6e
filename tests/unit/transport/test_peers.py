"""Real upstreams: nginx, `http.server`, hypercorn and Node, each with large bodies both ways.

64 MB, or `LARGE_BODY_GB=1`.
"""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.flavor import AsyncioTransport, httpx
from tests.support.nginx import configure_nginx, needs_nginx, skip_without_nginx
from tests.support.servers import free_port
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio_only, pytest.mark.anyio, pytest.mark.serial]

SIZE = int(float(os.environ.get("LARGE_BODY_GB", "0.0625")) * (1 << 30)) // 65536 * 65536
BLOCK = bytes(range(256)) * 256
DIGEST = hashlib.sha256()
for _ in range(SIZE // len(BLOCK)):
    DIGEST.update(BLOCK)

MOST_GROWTH = 32 << 20

NODE = shutil.which("node")


NGINX_CONFIG = """
    client_max_body_size 0; keepalive_requests {keepalive_requests};
    server {{
        listen 127.0.0.1:{port} backlog=1024; root {folder};
        location /put/ {{ dav_methods PUT; }}
    }}
"""

# These answer a PUT with the digest of what they got. nginx writes it into a file.
HTTP_SERVER = """
import hashlib, http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_PUT(self):
        digest, left = hashlib.sha256(), int(self.headers["content-length"])
        while left:
            data = self.rfile.read(min(left, 65536))
            left -= len(data)
            digest.update(data)
        answer = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

ASGI = """
import hashlib
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    headers, digest = [], hashlib.sha256()
    while True:
        message = await receive()
        digest.update(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/big":
        with open("big", "rb") as file:
            while data := file.read(65536):
                await send({"type": "http.response.body", "body": data, "more_body": True})
    else:
        answer = digest.hexdigest().encode()
        await send({"type": "http.response.body", "body": answer, "more_body": True})
    await send({"type": "http.response.body"})
"""

NODE_SERVER = """
const http = require("http"), fs = require("fs"), crypto = require("crypto");
http.createServer((request, response) => {
    if (request.url === "/big") { fs.createReadStream("big").pipe(response); return; }
    const digest = crypto.createHash("sha256");
    request.on("data", (part) => digest.update(part));
    request.on("end", () => response.end(digest.digest("hex")));
}).listen(Number(process.argv[2]), "127.0.0.1");
"""


def nginx(folder: Path, port: int, keepalive_requests: int = 1000) -> list[str]:
    (folder / "put").mkdir()
    values = {"folder": folder, "port": port, "keepalive_requests": keepalive_requests}
    return configure_nginx(folder, NGINX_CONFIG.format(**values))


def http_server(folder: Path, port: int) -> list[str]:
    return [sys.executable, "-c", HTTP_SERVER, str(port)]


def hypercorn(folder: Path, port: int) -> list[str]:
    (folder / "peer.py").write_text(ASGI)
    return [sys.executable, "-m", "hypercorn", "--bind", f"127.0.0.1:{port}", "peer:app"]


def node(folder: Path, port: int) -> list[str]:
    (folder / "peer.js").write_text(NODE_SERVER)
    assert NODE is not None
    return [NODE, "peer.js", str(port)]


needs_node = pytest.mark.skipif(NODE is None, reason="there is no Node.js on this machine")


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[str]:
    (folder / "small").write_bytes(b"0123456789" * 10)
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        assert process.poll() is None
        try:
            return bool(httpx.get(f"{url}/small", trust_env=False).status_code)
        except httpx.TransportError:
            return False

    try:
        eventually(answers)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


READS_CHUNKS = [
    pytest.param(nginx, marks=needs_nginx),
    hypercorn,
    pytest.param(node, marks=needs_node),
]


@dataclass
class Peer:
    url: str
    folder: Path

    def digest(self, response: httpx.Response) -> str:
        """Of the body that it got."""
        if response.text:
            return response.text
        with (self.folder / "put" / "upload").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(
    scope="module", params=[*READS_CHUNKS, http_server], ids=lambda command: command.__name__
)
def peer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Peer]:
    folder, port = tmp_path_factory.mktemp("peer"), free_port()
    with (folder / "big").open("wb") as file:
        for _ in range(SIZE // len(BLOCK)):
            file.write(BLOCK)
    command: Callable[[Path, int], list[str]] = request.param
    try:
        with running(command(folder, port), folder, port) as url:
            yield Peer(url, folder)
    finally:
        for name in ("big", "put/upload"):
            (folder / name).unlink(missing_ok=True)


def client(url: str = "", *, most: int = 100) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    return httpx.AsyncClient(transport=AsyncioTransport(limits=limits), base_url=url, timeout=60)


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def blocks(most: list[int]) -> AsyncIterator[bytes]:
    for number in range(SIZE // len(BLOCK)):
        if number % 64 == 0:
            most[0] = max(most[0], resident())
        yield BLOCK


async def test_a_large_body_comes_whole(peer: Peer) -> None:
    before = most = resident()
    async with client(peer.url) as c:
        for _ in range(2):  # and the connection is good for another
            digest = hashlib.sha256()
            async with c.stream("GET", "/big") as response:
                assert response.status_code == 200
                async for part in response.aiter_raw():
                    digest.update(part)
                    if len(part) >= 65536:
                        most = max(most, resident())
            assert digest.digest() == DIGEST.digest()
    assert most - before < MOST_GROWTH


async def test_a_large_body_goes_whole(peer: Peer) -> None:
    before, most = resident(), [0]
    async with client(peer.url) as c:
        for _ in range(2):
            fields = {"content-length": str(SIZE)}
            response = await c.put("/put/upload", content=blocks(most), headers=fields)
            assert response.is_success
            assert peer.digest(response) == DIGEST.hexdigest()
    assert most[0] - before < MOST_GROWTH


@pytest.mark.parametrize("peer", READS_CHUNKS, indirect=True, ids=lambda command: command.__name__)
async def test_a_large_body_goes_whole_in_chunks(peer: Peer) -> None:
    async with client(peer.url) as c:
        response = await c.put("/put/upload", content=blocks([0]))
        assert response.is_success
        assert peer.digest(response) == DIGEST.hexdigest()


async def test_many_callers_at_once_are_all_answered(peer: Peer) -> None:
    async with client(peer.url, most=20) as c:
        seen = await asyncio.gather(*(c.get("/small") for _ in range(200)))
        assert {response.status_code for response in seen} == {200}


@pytest.mark.nginx
@skip_without_nginx
async def test_connections_that_nginx_ends_under_load_are_not_an_error(
    tmp_path: Path,
) -> None:
    port = free_port()
    with running(nginx(tmp_path, port, keepalive_requests=3), tmp_path, port) as url:
        async with client(url, most=50) as c:
            left = iter(range(2000))
            seen = {"answers": 0}

            async def caller() -> None:
                for _ in left:
                    response = await c.get("/small")
                    assert (response.status_code, len(response.content)) == (200, 100)
                    seen["answers"] += 1

            await asyncio.gather(*(caller() for _ in range(50)))
        assert seen["answers"] == 2000
