# pyright: reportPrivateUsage=false
"""Keeps the exact target of a request that goes through a proxy of httpcore 1.0.9.

The exact target is the extension `target` of the request. httpcore sends it to a forward proxy
unchanged, although the proxy needs the whole URL (RFC 9112 3.2.2). If the upstream speaks TLS,
httpcore also takes it for the target of its CONNECT (RFC 9110 9.3.6), and the proxy refuses that.
Delete this module when httpcore does neither.
"""

from typing import Any, cast

import httpx

from .flavors import get_library, subclass_for
from .workarounds import find_pool

HTTP_PROXY, SOCKS_PROXY = "AsyncHTTPProxy", "AsyncSOCKSProxy"


class ExactURL:
    """A URL that is sent exactly as it was given. A subclass adds the base `httpx.URL`."""

    raw_path: bytes = b""


def has_exact_target(request: httpx.Request) -> bool:
    """Return whether the target of a request was given as raw bytes, as `forward_request` does."""
    return "target" in request.extensions or isinstance(request.url, ExactURL)


def prepare_target(client: Any, request: httpx.Request) -> None:
    """Change how a request carries its exact target if it goes to an HTTP proxy."""
    target: bytes = request.extensions.get("target", b"")
    if not target.startswith(b"/") or find_proxy_pool(client, request.url) is None:
        return
    if request.url.scheme == "http":
        request.extensions["target"] = b"http://" + request.url.netloc + target
    else:
        set_exact_url(request, ExactURL)


def find_proxy_pool(client: Any, url: httpx.URL, kind: str = HTTP_PROXY) -> Any:
    """Return the pool that serves a URL if it connects to a proxy of that kind, or None."""
    try:
        pool = find_pool(client, url)
    except AttributeError:  # another transport
        return None
    return pool if any(cls.__name__ == kind for cls in type(pool).__mro__) else None


def set_exact_url(request: httpx.Request, cls: type[ExactURL]) -> None:
    """Move the exact target of a request into its URL."""
    exact_class = subclass_for(cls, get_library(type(request.url)).URL)
    exact = cast(Any, exact_class)(request.url)
    exact.raw_path = request.extensions.get("target", request.url.raw_path)
    request.url = exact
    request.extensions.pop("target", None)
