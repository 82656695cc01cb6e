"""A connected socket to an upstream, by whichever of its addresses answers first (RFC 8305).

asyncio's own race, up to Python 3.11 at least, forgets the socket that was connected just as it was
cancelled, so that it stays open until the garbage collector comes. uvloop has no race.
"""

import asyncio
import ipaddress
import socket
from itertools import chain, zip_longest
from typing import Any

HEAD_START = 0.25
"""Seconds that an address has before the next one is tried beside it (RFC 8305 8)."""

Address = tuple[int, int, int, str, Any]  # family, type, protocol, name, what to connect to


async def connected(host: str, port: int, local: str | None) -> socket.socket:
    """A socket that is the caller's; whatever ends this, no other is left open.

    Raises:
        OSError: the name does not resolve, or no address can be connected to.
    """
    loop = asyncio.get_running_loop()
    addresses = await _addresses(loop, host, port)
    trying: set[asyncio.Task[socket.socket]] = set()
    failure = OSError()  # of the last that failed
    try:
        while addresses or trying:
            if addresses:
                trying.add(loop.create_task(_connected(loop, addresses.pop(0), local)))
            done, _ = await asyncio.wait(
                trying,
                timeout=HEAD_START if addresses else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                trying.discard(task)
                exc = task.exception()
                if exc is None:
                    return task.result()
                if not isinstance(exc, OSError):
                    raise exc
                failure = exc
        raise failure
    finally:
        for task in trying:
            task.cancel()
            task.add_done_callback(_close_late)


async def _addresses(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Address]:
    """Where `host` is, the families by turns."""
    kind = socket.SOCK_STREAM
    try:
        ipaddress.ip_address(host)
    except ValueError:  # it is a name, and to look it up takes time
        found = await loop.getaddrinfo(host, port, type=kind)
    else:
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
    first = [address for address in found if address[0] == found[0][0]]
    others = [address for address in found if address[0] != found[0][0]]
    return [one for one in chain.from_iterable(zip_longest(first, others)) if one is not None]


async def _connected(
    loop: asyncio.AbstractEventLoop, address: Address, local: str | None
) -> socket.socket:
    family, kind, protocol, _, target = address
    one = socket.socket(family, kind, protocol)
    try:
        one.setblocking(False)
        if local is not None:
            one.bind((local, 0))
        await loop.sock_connect(one, target)
    except BaseException:
        one.close()
        raise
    return one


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    """Close what was connected too late; a failure is nobody's any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
