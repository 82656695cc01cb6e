"""AsyncioTransport for the client of httpx2: the same, with httpx2's classes."""

from typing import TYPE_CHECKING, cast

import httpcore2
import httpx2

from .._httpx.flavors import HTTPXModule
from ._pool import PoolState
from ._transport import Flavor

__all__ = ["AsyncioTransport", "PoolState"]

if TYPE_CHECKING:  # for AsyncioTransportMixin is of httpx's classes to it

    class _Own:
        def pool_state(self) -> PoolState: ...
else:
    from ._transport import AsyncioTransportMixin as _Own


class AsyncioTransport(_Own, httpx2.AsyncHTTPTransport):
    """The transport of an `httpx2.AsyncClient`, for HTTP/1.1 on asyncio, at a fraction of the cost.

        client_lifespan(httpx2.AsyncClient, transport=AsyncioTransport())

    Arguments, and what is raised, are those of `asgi_upstream.transport.AsyncioTransport`, of
    httpx2's classes.
    """

    _stock = Flavor(cast(HTTPXModule, httpx2), httpcore2)
