"""A mend for httpcore 1.0.9: connections that requests leave behind in its pool for good.

A request that is cancelled, or times out, in the moment in which the pool gives it a new connection
leaves that there: never used, never removed. When callers leave a full pool it may lose all its
places so. https://github.com/encode/httpcore/issues/1093; httpx2 has it mended.

There is no public way to those connections. This is the one place that reads private attributes of
httpx and httpcore; where they are not as it knows them it does nothing, and a test fails.
"""

from typing import Any

import anyio


async def reclaim_stranded(client: Any, url: object) -> None:
    """Close stranded connections, and give their places to the requests that wait for them."""
    try:
        pool: Any = client._transport_for_url(url)._pool
        used = {id(request.connection) for request in pool._requests}
        stranded: list[Any] = [
            connection
            for connection in pool._connections
            if id(connection) not in used and not (connection.is_idle() or connection.is_closed())
        ]
        for connection in stranded:
            pool._connections.remove(connection)
        closing = [*stranded, *pool._assign_requests_to_connections()] if stranded else []
    except AttributeError:  # another transport, or another version
        return
    with anyio.CancelScope(shield=True):
        for connection in closing:
            await connection.aclose()
