"""AsyncioTransport: a fast HTTP/1.1 transport for `httpx.AsyncClient` on asyncio."""

from ._pool_state import PoolState
from ._transport import AsyncioTransport

__all__ = ["AsyncioTransport", "PoolState"]
