"""Certificates: those of the environment, and those that are replaced while the app runs."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.flavor import client_lifespan, httpx
from tests.support.pages import blocks


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def serve_tls(authority: trustme.CA, *, mutual: bool = False) -> AsyncIterator[str]:
    """Yield the URL of a server that answers with the common name of the caller's certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if mutual:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            peer: Any = writer.get_extra_info("peercert") or {}
            names = {key: value for ((key, value),) in peer.get("subject", ())}
            name = names.get("commonName", "nobody").encode()
            head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            writer.write(head % len(name) + name)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def fetch_status(authority: trustme.CA, **options: Any) -> int:
    async with (
        serve_tls(authority) as url,
        client_lifespan(base_url=url, **options)(None) as state,
    ):
        client: Any = state["client"]
        response: httpx.Response = await client.get("/")
        return response.status_code


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_authority_of_the_environment_is_trusted(
    variable: str, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(httpx.ConnectError):
        asyncio.run(fetch_status(authority))
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    if variable == "SSL_CERT_FILE":
        monkeypatch.setenv(variable, str(file))
    else:
        monkeypatch.setenv(variable, hash_directory(file))
    assert asyncio.run(fetch_status(authority)) == 200
    with pytest.raises(httpx.ConnectError):
        asyncio.run(fetch_status(authority, trust_env=False))


def hash_directory(file: Path) -> str:
    """Make the file's folder one in which OpenSSL finds the certificate by its subject."""
    command = ["openssl", "x509", "-subject_hash", "-noout", "-in", str(file)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except FileNotFoundError:
        pytest.skip("there is no openssl")
    (file.parent / f"{found}.0").write_bytes(file.read_bytes())
    return str(file.parent)


@pytest.mark.of_httpx
def test_recipe_uses_a_certificate_that_was_replaced(authority: trustme.CA, tmp_path: Path) -> None:
    (block,) = [b for b in blocks("docs/transport.md") if "reload_certificates" in b.code]
    names: dict[str, Any] = {}
    exec("from asgi_upstream import client_lifespan\nfrom fastapi import FastAPI\n", names)
    exec("from asgi_upstream.transport import AsyncioTransport\n" + block.code, names)
    names["CERT"], names["KEY"] = str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")
    names["RELOAD_INTERVAL"] = 0.01

    def issue(name: str) -> None:
        issued = authority.issue_cert("client.example", common_name=name)
        (tmp_path / "tls.crt").write_bytes(b"".join(p.bytes() for p in issued.cert_chain_pems))
        (tmp_path / "tls.key").write_bytes(issued.private_key_pem.bytes())

    async def call() -> None:
        authority.configure_trust(names["context"])
        issue("first")
        async with (
            serve_tls(authority, mutual=True) as url,
            names["certificate_lifespan"](None),
            client_lifespan(base_url=url, transport=names["mutual_tls"])(None) as state,
        ):
            client: Any = state["client"]
            assert (await client.get("/")).text == "first"
            issue("second")
            async with asyncio.timeout(30):
                while (await client.get("/")).text != "second":  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    asyncio.run(call())
