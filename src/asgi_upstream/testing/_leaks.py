"""Finds exchanges that are still open and clients that were never closed."""

import functools
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from .._clients import get_client_state, iter_client_states
from .._httpx.flavors import MODULE_NAMES
from ._upstream import running_upstreams
from ._waiting import aeventually, eventually

EXCHANGE_END_TIMEOUT = 5.0
"""Seconds that an exchange may take to end after its caller has disconnected."""


class no_leaks:
    """Fails a test that leaves an exchange or a client open.

        with no_leaks():  # or async with
            ...

    Only exchanges and clients that are opened inside count. It detects:

    - exchanges of this library in this process, and exchanges of other processes that reach an
      `Upstream`;
    - clients that `client_lifespan` opened, and each `httpx.AsyncClient` that was created inside
      and has sent a request;
    - responses of `send(stream=True)` on these clients that were not closed.

    Arguments:
        within: Seconds that open exchanges may take to end.

    Raises:
        AssertionError: At the end, with the open requests and clients. Not if the block raised.
    """

    def __init__(self, *, within: float = EXCHANGE_END_TIMEOUT) -> None:
        self._within = within
        self._paused = False

    def begin(self) -> None:
        """Start to watch."""
        self._clients: list[Any] = []
        self._ignored: list[object] = []
        self._stray_before = {id(client): stray for client, stray in _unaccounted_connections([])}
        self._ignore_existing()
        _active.append(self)
        _patch_constructors()

    def end(self) -> None:
        """Stop watching."""
        if self in _active:
            _active.remove(self)
        _patch_constructors()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Ignore everything that is opened inside."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
            self._ignore_existing()

    def track(self, client: object) -> None:
        if not self._paused:
            self._clients.append(client)

    def check_exchanges(self) -> None:
        """Wait for open exchanges to end.

        Raises:
            AssertionError: If one does not end in time.
        """
        try:
            eventually(lambda: not self._open_exchanges(), self._within)
        except AssertionError:
            raise AssertionError(self._leak_report()) from None

    async def acheck_exchanges(self) -> None:
        """Check exchanges in an async test, while other tasks keep running."""
        try:
            await aeventually(lambda: not self._open_exchanges(), self._within)
        except AssertionError:
            raise AssertionError(self._leak_report()) from None

    def check_clients(self) -> None:
        """Check that all clients were closed.

        Raises:
            AssertionError: If one was not closed.
        """
        if unclosed := list(self._unclosed_clients()):
            raise AssertionError("\n  ".join(["clients that were never closed:", *unclosed]))

    def _leak_report(self) -> str:
        title = f"exchanges still open {self._within:g} s after the end:"
        return "\n  ".join([title, *self._open_exchanges()])

    def _ignore_existing(self) -> None:
        """Ignore exchanges and clients that are open now."""
        self._ignored += [exchange for exchange, _ in _iter_open_exchanges()]
        self._ignored += [
            client for client, state in iter_client_states() if state.name is not None
        ]

    def _is_new(self, resource: object) -> bool:
        return all(resource is not ignored for ignored in self._ignored)

    def _open_exchanges(self) -> list[str]:
        leaks = [text for exchange, text in _iter_open_exchanges() if self._is_new(exchange)]
        for client, stray in _unaccounted_connections(self._clients):
            if (count := stray - self._stray_before.get(id(client), 0)) > 0:
                responses = "an unclosed response" if count == 1 else f"{count} unclosed responses"
                leaks.append(f"{responses} of {_describe_client(client)}")
        return leaks

    def _unclosed_clients(self) -> Iterator[str]:
        states = list(iter_client_states())
        for client, state in states:
            if state.name is not None and self._is_new(client):
                yield f"the client {state.name!r}: its lifespan was not exited"
        lifespan_clients = {id(client) for client, state in states if state.name is not None}
        used = {id(client) for client, _ in states}
        for client in self._clients:
            # Exchanges may bypass the client's methods, which keep its state.
            was_used = id(client) in used or _is_opened(client)
            if was_used and id(client) not in lifespan_clients and not client.is_closed:
                yield f"{_describe_client(client)}: use `async with`, or aclose()"

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: object, traceback: TracebackType | None
    ) -> None:
        try:
            if exc_type is None:
                self.check_exchanges()
                self.check_clients()
        finally:
            self.end()

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: object, traceback: TracebackType | None
    ) -> None:
        try:
            if exc_type is None:
                await self.acheck_exchanges()
                self.check_clients()
        finally:
            self.end()


_active: list[no_leaks] = []
_constructors: dict[Any, Any] = {}


def _iter_open_exchanges() -> Iterator[tuple[object, str]]:
    """Return the exchanges that are open now, each with a description."""
    for _, state in iter_client_states():
        for exchange in list(state.open_exchanges):
            request = exchange.request
            client = f"the client {state.name!r}" if state.name else "a client without a lifespan"
            yield exchange, f"{request.method} {request.url}, sent by {client}"
    for upstream in list(running_upstreams):
        for received in upstream.under_way():
            yield received, f"{received.method} {upstream.url}{received.target}, at the upstream"


def _unaccounted_connections(clients: Iterable[Any]) -> Iterator[tuple[Any, int]]:
    """Return each client with the number of its used connections that no open exchange explains.

    Covers `clients` and all clients that had an exchange.
    """
    open_counts = {id(client): (client, state.open_count) for client, state in iter_client_states()}
    open_counts |= {id(client): (client, 0) for client in clients if id(client) not in open_counts}
    for client, exchanges in open_counts.values():
        transports = (getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values())
        yield client, sum(map(_in_use, transports)) - exchanges


def _in_use(transport: Any) -> int:
    if pool_state := getattr(transport, "pool_state", None):
        state = pool_state()
        return int(state.open - state.idle)
    connections = getattr(getattr(transport, "_pool", None), "connections", ())
    return sum(not (each.is_idle() or each.is_closed()) for each in connections)


def _describe_client(client: Any) -> str:
    if name := get_client_state(client).name:
        return f"the client {name!r}"
    name, url = type(client).__name__, getattr(client, "base_url", None)
    return f"an {name} for {url}" if url and url.host else f"an {name}"


def _patch_constructors() -> None:
    """Track new clients while at least one check is active."""
    if not _active:
        for client_class, constructor in _constructors.items():
            client_class.__init__ = constructor
        _constructors.clear()
        return
    for module in MODULE_NAMES:
        client_class = getattr(sys.modules.get(module), "AsyncClient", None)
        if client_class is not None and client_class not in _constructors:
            _constructors[client_class] = client_class.__init__
            client_class.__init__ = _tracking_init(client_class.__init__)


def _is_opened(client: Any) -> bool:
    """Whether the client has sent a request or was entered."""
    return getattr(getattr(client, "_state", None), "name", None) == "OPENED"


def _tracking_init(constructor: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(constructor)
    def init(self: object, *args: object, **options: object) -> None:
        constructor(self, *args, **options)
        for check in list(_active):
            check.track(self)

    return init
