"""Callers of the examples."""

import socket
from collections.abc import Callable

import httpx

from tests.support.waiting import eventually

Serve = Callable[..., httpx.Client]


def leave_when(caller: httpx.Client, path: str, condition: Callable[[], bool]) -> None:
    """Ask on a socket, and close it when this is so."""
    url = caller.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=60) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        eventually(condition)
