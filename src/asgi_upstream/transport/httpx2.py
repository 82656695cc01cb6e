"""AsyncioTransport for httpx2."""

from typing import TYPE_CHECKING, cast

import httpx2

from .._httpx.interfaces import HTTPXModule
from ._flavor import Flavor
from ._pool_state import PoolState

__all__ = ["AsyncioTransport", "PoolState"]

if TYPE_CHECKING:  # to type checkers, AsyncioTransportMixin is derived from httpx's transport

    class _Mixin:
        trust_env: bool

        def pool_state(self) -> PoolState: ...
else:
    from ._transport import AsyncioTransportMixin as _Mixin


class AsyncioTransport(_Mixin, httpx2.AsyncHTTPTransport):
    """A transport for `httpx2.AsyncClient` that costs a fraction of httpx2's own.

        client_lifespan(httpx2.AsyncClient, transport=AsyncioTransport(retries=2))

    It has the arguments of `asgi_upstream.transport.AsyncioTransport` and raises the same errors,
    with httpx2's classes.
    """

    _flavor = Flavor(cast(HTTPXModule, httpx2), "httpcore2")
