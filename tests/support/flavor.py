"""The library of the tests: httpx, or httpx2 with TESTED_LIBRARY=httpx2.

Tests that run on both import these names from here. They are typed as those of httpx.
"""

import os
from typing import TYPE_CHECKING, Any

import asgi_upstream

__all__ = ["ON_HTTPX2", "AsyncioTransport", "client_lifespan", "httpcore", "httpx"]

ON_HTTPX2 = os.environ.get("TESTED_LIBRARY") == "httpx2"

if TYPE_CHECKING or not ON_HTTPX2:
    import httpcore
    import httpx

    from asgi_upstream import client_lifespan
    from asgi_upstream.transport import AsyncioTransport
else:
    import httpcore2 as httpcore
    import httpx2 as httpx

    from asgi_upstream.transport.httpx2 import AsyncioTransport

    def client_lifespan(factory: Any = httpx.AsyncClient, /, **options: Any) -> Any:
        return asgi_upstream.client_lifespan(factory, **options)
