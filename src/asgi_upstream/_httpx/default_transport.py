# pyright: reportPrivateUsage=false
"""Decides which transport the client of a lifespan gets."""

import asyncio
import socket
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from .flavors import get_library

TRANSPORT_OPTIONS = ("verify", "cert", "trust_env", "limits", "http1", "http2")
"""Options that httpx passes to the transport that it creates, and otherwise ignores."""

SHARED_OPTIONS = ("verify", "cert", "trust_env", "limits")
"""The options among them that `AsyncioTransport` has too."""

_PROXY_VARIABLES = {"http": "HTTP_PROXY", "https": "HTTPS_PROXY", "all": "ALL_PROXY"}

_GIVEN = "transport= is given"
_OTHER_FACTORY = "the factory is not httpx.AsyncClient or httpx2.AsyncClient itself"
_OTHER_TRANSPORTS = {_GIVEN: "the given transport", _OTHER_FACTORY: "the factory's transport"}


@dataclass(frozen=True, slots=True)
class TransportChoice:
    """A transport and the reason for it.

    Attributes:
        is_fast: Whether the lifespan creates an `AsyncioTransport`.
        reason: The reason, as the log names it.
    """

    is_fast: bool
    reason: str

    @property
    def transport(self) -> str:
        """The transport, as the log names it."""
        if self.is_fast:
            return "AsyncioTransport"
        return _OTHER_TRANSPORTS.get(self.reason, "httpx's transport")


def choose_transport(
    factory: object, options: Mapping[str, object], async_library: str, env_proxy: str | None
) -> TransportChoice:
    """Choose the transport for a client that is about to be created.

    Arguments:
        async_library: "asyncio" or "trio".
        env_proxy: The environment variable that sets a proxy, or None.

    Returns:
        The choice. If it is not the fast transport, httpx creates its own or uses the given one.
    """
    reason = None
    if options.get("transport") is not None:
        reason = _GIVEN
    elif not is_library_client(factory):
        reason = _OTHER_FACTORY
    elif async_library != "asyncio":
        reason = f"the event loop is {async_library}"
    elif options.get("http2"):
        reason = "http2=True"
    elif not options.get("http1", True):
        reason = "http1=False"
    elif option := next((o for o in ("proxy", "mounts", "uds") if options.get(o)), None):
        reason = f"{option}= is given"
    elif options.get("trust_env", True) and env_proxy is not None:
        reason = f"{env_proxy} is set in the environment"
    return TransportChoice(reason is None, reason or "no option needs httpx's transport")


def is_library_client(factory: object) -> bool:
    """Whether a factory is the `AsyncClient` of httpx or httpx2 itself."""
    return isinstance(factory, type) and factory is get_library(factory).AsyncClient


def check_transport_options(factory: object, options: Mapping[str, object]) -> None:
    """Refuse the options that httpx would ignore because of `transport=`.

    Raises:
        TypeError: If there are such options.
    """
    transport = options.get("transport")
    if transport is None or not isinstance(factory, type):
        return
    library = get_library(factory)
    if not issubclass(factory, (library.AsyncClient, library.Client)):
        return
    given = [option for option in TRANSPORT_OPTIONS if option in options]
    # trust_env=False says what httpx does anyway if it is given a transport.
    ignored = [option for option in given if option != "trust_env" or options[option]]
    if ignored:
        name = type(transport).__name__
        arguments = ", ".join(f"{option}=..." for option in ignored)
        raise TypeError(
            f"client_lifespan(transport=..., {arguments}): httpx ignores {ignored[0]}= beside "
            f"transport=; give it to the transport, {name}({arguments})"
        )


def current_async_library() -> str:
    """Return "asyncio" or "trio", whichever runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return "trio"
    return "asyncio"


def find_env_proxy() -> str | None:
    """Return the name of the environment variable that sets a proxy, as httpx reads them."""
    proxies = urllib.request.getproxies()
    if "*" in [host.strip() for host in proxies.get("no", "").split(",")]:
        return None
    return next((name for key, name in _PROXY_VARIABLES.items() if proxies.get(key)), None)


def keepalive_socket_options() -> list[tuple[int, int, int]]:
    """Return options for TCP keepalive: 60 s idle, then 5 probes of 15 s, if supported.

    They find hosts that vanished without closing their connections, and keep NAT tables alive.
    """
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    idle = "TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE"
    for name, value in ((idle, 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 5)):
        if (option := getattr(socket, name, None)) is not None:
            options.append((socket.IPPROTO_TCP, option, value))
    return options


def enable_keepalive(client: httpx.AsyncClient) -> None:
    """Enable TCP keepalive on the transports that httpx created for a client.

    The client has no option for it. If the lifespan passed in a transport that has the option,
    httpx would ignore the proxies of the environment. Remove this if `AsyncClient` gets
    `socket_options=`.
    """
    transports: list[Any] = [client._transport, *client._mounts.values()]
    for transport in transports:
        pool: Any = getattr(transport, "_pool", None)
        if getattr(pool, "_socket_options", ()) is None:
            pool._socket_options = keepalive_socket_options()
