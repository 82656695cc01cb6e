"""AsyncioTransport for the client of httpx2: the same, with httpx2's classes."""

from typing import TYPE_CHECKING, cast

import httpcore2
import httpx2

from ..libraries import Library
from . import PoolState, _Flavor

__all__ = ["AsyncioTransport", "PoolState"]

if TYPE_CHECKING:  # for OnAsyncio is of httpx's classes to it

    class _Own:
        def pool_state(self) -> PoolState: ...
else:
    from . import OnAsyncio as _Own


class AsyncioTransport(_Own, httpx2.AsyncHTTPTransport):
    """The transport of an `httpx2.AsyncClient`, for HTTP/1.1 on asyncio, at a fraction of the cost.

        client_lifespan(httpx2.AsyncClient, transport=AsyncioTransport())

    Arguments, and what is raised, are those of `asgi_upstream.transport.AsyncioTransport`, of
    httpx2's classes.
    """

    _stock = _Flavor(cast(Library, httpx2), httpcore2)
