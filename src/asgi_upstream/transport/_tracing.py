"""Calls the `trace` extension of a request, like httpcore."""

from collections.abc import Awaitable, Callable
from typing import Any

from ._connection import HTTP11Connection
from ._serializer import OutgoingRequest

Trace = Callable[[str, dict[str, Any]], Awaitable[None]]


async def send_traced(connection: HTTP11Connection, out: OutgoingRequest, trace: Trace) -> None:
    """Send a request and call `trace` with the events that httpcore reports."""
    await trace("http11.send_request_headers.started", {})
    connection.send(out)
    await trace("http11.send_request_headers.complete", {"return_value": None})
    await trace("http11.receive_response_headers.started", {})
    try:
        while not connection.has_head:
            await connection.wait_readable()
    except Exception as exc:
        await trace("http11.receive_response_headers.failed", {"exception": exc})
        raise
    head = connection.head
    answer = (head.version, head.status, head.reason, head.headers)
    await trace("http11.receive_response_headers.complete", {"return_value": answer})
