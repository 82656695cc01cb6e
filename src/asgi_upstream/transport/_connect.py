"""Connects a socket to the first of an upstream's addresses that answers (RFC 8305).

asyncio's own race leaks a socket if it is cancelled just as the socket connects, at least up to
Python 3.11. uvloop has no race.
"""

import asyncio
import functools
import ipaddress
import os
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, zip_longest
from typing import Any

HAPPY_EYEBALLS_DELAY = 0.25
"""Seconds before the next address is tried beside the previous one (RFC 8305 8)."""

MAX_DNS_THREADS = 10
"""Threads of a process that look up host names."""

Address = tuple[int, int, int, str, Any]  # family, type, protocol, canonical name, socket address
SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray]


async def connect_tcp(
    host: str, port: int, local_address: str | None, options: Iterable[SocketOption] = ()
) -> socket.socket:
    """Return a connected socket, which the caller must close. No other socket stays open.

    Raises:
        OSError: If the name does not resolve, or no address accepts a connection.
    """
    loop = asyncio.get_running_loop()
    addresses = await _resolve(loop, host, port)
    attempts: set[asyncio.Task[socket.socket]] = set()
    last_failure = OSError()
    try:
        while addresses or attempts:
            if addresses:
                attempt = _connect_one(loop, addresses.pop(0), local_address, options)
                attempts.add(loop.create_task(attempt))
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
                last_failure = exc
        raise last_failure
    finally:
        for task in attempts:
            task.cancel()
            task.add_done_callback(_close_unused)


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Address]:
    """Return the host's addresses. IPv4 and IPv6 alternate."""
    try:
        ipaddress.ip_address(host)
    except ValueError:  # a name, whose lookup blocks
        lookup = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await loop.run_in_executor(_dns_executor(os.getpid()), lookup)
    else:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    preferred = [address for address in found if address[0] == found[0][0]]
    others = [address for address in found if address[0] != found[0][0]]
    alternating = chain.from_iterable(zip_longest(preferred, others))
    return [address for address in alternating if address is not None]


@functools.cache
def _dns_executor(pid: int) -> ThreadPoolExecutor:
    """Return the process's own threads for lookups. A fork does not inherit threads.

    The app's `asyncio.to_thread` work may occupy all threads of the loop's default executor.
    """
    return ThreadPoolExecutor(MAX_DNS_THREADS, thread_name_prefix=f"asgi-upstream-dns-{pid}")


async def _connect_one(
    loop: asyncio.AbstractEventLoop,
    address: Address,
    local_address: str | None,
    options: Iterable[SocketOption],
) -> socket.socket:
    family, socket_type, protocol, _, socket_address = address
    sock = socket.socket(family, socket_type, protocol)
    try:
        sock.setblocking(False)
        for option in options:
            sock.setsockopt(*option)
        if local_address is not None:
            sock.bind((local_address, 0))
        await loop.sock_connect(sock, socket_address)
    except BaseException:
        sock.close()
        raise
    return sock


def _close_unused(task: asyncio.Task[socket.socket]) -> None:
    """Close a socket that connected too late. A failure no longer matters."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
