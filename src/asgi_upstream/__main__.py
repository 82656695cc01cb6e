"""Prints the installed versions for a bug report: `python -m asgi_upstream`."""

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import httpx

from ._httpx.default_transport import choose_transport, find_env_proxy

PACKAGES = (
    ("asgi-upstream", "httpx", "httpcore", "starlette", "anyio"),
    ("fastapi", "httpx2", "websockets", "prometheus-client", "opentelemetry-api"),
    ("h2", "brotli", "brotlicffi", "zstandard"),
    ("uvicorn", "hypercorn", "granian", "gunicorn", "uvloop", "trio", "h11"),
    ("httptools", "wsproto"),
)


def report_lines() -> Iterator[str]:
    """Yield a line each for Python, the platform and the packages that matter."""
    yield _format_row("Python", sys.version)
    yield _format_row("platform", platform.platform())
    for group in PACKAGES:
        yield ""
        for name in group:
            yield _format_row(name, _version(name))
    yield ""
    yield _format_row("transport", _default_transport())
    yield _format_row("errors", "docs/errors.md explains each message")


def _default_transport() -> str:
    """Describe the transport that `client_lifespan()` chooses on asyncio."""
    choice = choose_transport(httpx.AsyncClient, {}, "asyncio", find_env_proxy())
    return f"{choice.transport} by default: {choice.reason}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _format_row(name: str, value: str) -> str:
    return f"{name:<18} {' '.join(value.split())}"


if __name__ == "__main__":
    print("\n".join(report_lines()))
