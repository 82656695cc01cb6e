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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
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
    assert len(added) <= 60
