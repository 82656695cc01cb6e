"""A connected socket to an upstream, by whichever of its addresses answers first (RFC 8305).

asyncio's own race, up to Python 3.11 at least, forgets the socket that was connected just as it was
cancelled, so that it stays open until the garbage collector comes. uvloop has no race.
"""

import asyncio
import ipaddress
import socket
from itertools import chain, zip_longest
from typing import Any

HAPPY_EYEBALLS_DELAY = 0.25
"""Seconds that an address has before the next one is tried beside it (RFC 8305 8)."""

Address = tuple[int, int, int, str, Any]  # family, type, protocol, name, what to connect to


async def connect_tcp(host: str, port: int, local: str | None) -> socket.socket:
    """A socket that is the caller's; whatever ends this, no other is left open.

    Raises:
        OSError: the name does not resolve, or no address can be connected to.
    """
    loop = asyncio.get_running_loop()
    addresses = await _resolve(loop, host, port)
    attempts: set[asyncio.Task[socket.socket]] = set()
    failure = OSError()  # of the last that failed
    try:
        while addresses or attempts:
            if addresses:
                attempts.add(loop.create_task(_connect_one(loop, addresses.pop(0), local)))
            done, _ = await asyncio.wait(
                attempts,
                timeout=HAPPY_EYEBALLS_DELAY if addresses else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                attempts.discard(task)
                exc = task.exception()
                if exc is None:
                    return task.result()
                if not isinstance(exc, OSError):
                    raise exc
                failure = exc
        raise failure
    finally:
        for task in attempts:
            task.cancel()
            task.add_done_callback(_close_unused)


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Address]:
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


async def _connect_one(
    loop: asyncio.AbstractEventLoop, address: Address, local: str | None
) -> socket.socket:
    family, kind, protocol, _, target = address
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        if local is not None:
            sock.bind((local, 0))
        await loop.sock_connect(sock, target)
    except BaseException:
        sock.close()
        raise
    return sock


def _close_unused(task: asyncio.Task[socket.socket]) -> None:
    """Close what was connected too late; a failure is nobody's any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
