"""What `import asgi_upstream` brings along: next to nothing that httpx and Starlette do not."""

import subprocess
import sys

import pytest

BEFORE = (
    "import sys, asyncio, httpx, starlette.applications, starlette.requests, starlette.responses"
)
NOT_ASKED_FOR = (
    "asgi_upstream.__main__",
    "asgi_upstream.instrumentation",
    "asgi_upstream.testing",
    "asgi_upstream.transport",
    "fastapi",
    "granian",
    "httptools",
    "httpx2",
    "httpx_ws",
    "hypercorn",
    "opentelemetry",
    "prometheus_client",
    "uvicorn",
    "uvloop",
)


def printed(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.process
def test_what_is_optional_is_not_imported() -> None:
    imported = printed("import sys, asgi_upstream; print(*sys.modules)")
    assert "asgi_upstream.responses" in imported
    assert set(imported).isdisjoint(NOT_ASKED_FOR)


@pytest.mark.process
def test_import_adds_few_modules_to_httpx_and_starlette() -> None:
    added = printed(
        f"{BEFORE}; before = set(sys.modules); import asgi_upstream;"
        "print(*set(sys.modules) - before)"
    )
    others = [name for name in added if not name.startswith("asgi_upstream")]
    assert len(others) <= 5, f"one of these is heavy, or all are: {others}"
    assert len(added) <= 66


USE_TRANSPORT = """
import asyncio, sys, httpx
from asgi_upstream.transport import AsyncioTransport

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\nconnection: close\\r\\n\\r\\n")
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = "http://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
    async with httpx.AsyncClient(transport=AsyncioTransport()) as client:
        await client.get(url)
        print("httpcore" in sys.modules)
        import httpcore
        async def mocked(pool, request):
            return httpcore.Response(418)
        httpcore.AsyncConnectionPool.handle_async_request = mocked
        print((await client.get(url)).status_code)

asyncio.run(main())
"""


@pytest.mark.process
def test_transport_needs_httpcore_only_for_its_mocks() -> None:
    """httpcore imports h2 and trio. That takes a fifth of the start of an app."""
    assert printed(USE_TRANSPORT) == ["False", "418"]
