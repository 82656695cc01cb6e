"""Ports that do not answer."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def open_full_port() -> Iterator[int]:
    """Open a port with a full queue. Linux neither accepts nor refuses another connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        yield full.getsockname()[1]
