"""What was opened and not closed: exchanges that go on, and clients that nobody closed."""

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

WITHIN = 5.0
"""Seconds that an exchange may take to end once its caller has left."""


class no_leaks:
    """Fails a test that leaves an exchange open, or a client that it never closed.

        with no_leaks():  # or async with
            ...

    Only what begins inside counts. Exchanges of this library are seen wherever the app runs in
    this process; those of an app elsewhere, where they end in an `Upstream`. Of clients are seen
    those that `client_lifespan` opened, and each `httpx.AsyncClient` that was made inside and sent
    something; and of both, a response of `send(stream=True)` that nobody closed.

    Arguments:
        within: seconds that an exchange may still take to end.

    Raises:
        AssertionError: at the end, with the requests of what is open and the names of the clients.
            Not where the block raised something itself.
    """

    def __init__(self, *, within: float = WITHIN) -> None:
        self._within = within
        self._paused = False

    def begin(self) -> None:
        """Watch from here on."""
        self._made: list[Any] = []
        self._ignored: list[object] = []
        self._stray_before = {id(client): stray for client, stray in _unaccounted_connections([])}
        self._ignore_existing()
        _watching.append(self)
        _patch_constructors()

    def end(self) -> None:
        """Watch no longer."""
        if self in _watching:
            _watching.remove(self)
        _patch_constructors()

    @contextmanager
    def paused(self) -> Generator[None]:
        """What is opened inside is somebody else's to close."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
            self._ignore_existing()

    def track(self, client: object) -> None:
        if not self._paused:
            self._made.append(client)

    def check_exchanges(self) -> None:
        """Wait for what is open to end, and raise where it does not."""
        try:
            eventually(lambda: not self._open_exchanges(), self._within)
        except AssertionError:
            raise AssertionError(self._leak_report()) from None

    async def acheck_exchanges(self) -> None:
        """The same in an async test, while the tasks beside it go on."""
        try:
            await aeventually(lambda: not self._open_exchanges(), self._within)
        except AssertionError:
            raise AssertionError(self._leak_report()) from None

    def check_clients(self) -> None:
        """Raise where a client was not closed."""
        if unclosed := list(self._unclosed_clients()):
            raise AssertionError("\n  ".join(["never closed:", *unclosed]))

    def _leak_report(self) -> str:
        title = f"still open {self._within:g} s after the end:"
        return "\n  ".join([title, *self._open_exchanges()])

    def _ignore_existing(self) -> None:
        """What is open now is not of the test."""
        self._ignored += [one for one, _ in _under_way()]
        self._ignored += [
            client for client, ledger in iter_client_states() if ledger.name is not None
        ]

    def _is_ours(self, one: object) -> bool:
        return all(one is not other for other in self._ignored)

    def _open_exchanges(self) -> list[str]:
        told = [told for one, told in _under_way() if self._is_ours(one)]
        for client, stray in _unaccounted_connections(self._made):
            if (ours := stray - self._stray_before.get(id(client), 0)) > 0:
                responses = "a response" if ours == 1 else f"{ours} responses"
                told.append(f"{responses} of {_describe_client(client)}, which nobody closed")
        return told

    def _unclosed_clients(self) -> Iterator[str]:
        ledgers = list(iter_client_states())
        for client, ledger in ledgers:
            if ledger.name is not None and self._is_ours(client):
                yield f"the client {ledger.name!r}: the lifespan that opened it was not left"
        of_a_lifespan = {id(client) for client, ledger in ledgers if ledger.name is not None}
        used = {id(client) for client, _ in ledgers}
        for client in self._made:
            # An exchange may go past the client's own methods, which keep its state.
            was_used = id(client) in used or _is_opened(client)
            if was_used and id(client) not in of_a_lifespan and not client.is_closed:
                yield f"{_describe_client(client)}: use `async with`, or aclose()"

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: object, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.check_exchanges()
                self.check_clients()
        finally:
            self.end()

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: object, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.acheck_exchanges()
                self.check_clients()
        finally:
            self.end()


_watching: list[no_leaks] = []
_constructors: dict[Any, Any] = {}


def _under_way() -> Iterator[tuple[object, str]]:
    """What is open now, and how to tell of it."""
    for _, ledger in iter_client_states():
        for exchange in list(ledger.open_exchanges):
            request = exchange.request
            by = f"by the client {ledger.name!r}" if ledger.name else "by a client of no lifespan"
            yield exchange, f"{request.method} {request.url}, {by}"
    for upstream in list(running_upstreams):
        for received in upstream.under_way():
            told = f"{received.method} {upstream.url}{received.target}, as the upstream sees it"
            yield received, told


def _unaccounted_connections(clients: Iterable[Any]) -> Iterator[tuple[Any, int]]:
    """These clients and all that had an exchange, and how many connections each has in use, as far
    as its transports tell, beyond those of its exchanges."""
    open_on = {id(client): (client, ledger.open_count) for client, ledger in iter_client_states()}
    open_on |= {id(client): (client, 0) for client in clients if id(client) not in open_on}
    for client, exchanges in open_on.values():
        transports = (getattr(client, "_transport", None), *getattr(client, "_mounts", {}).values())
        yield client, sum(map(_in_use, transports)) - exchanges


def _in_use(transport: Any) -> int:
    if tell := getattr(transport, "pool_state", None):
        state = tell()
        return int(state.open - state.idle)
    connections = getattr(getattr(transport, "_pool", None), "connections", ())
    return sum(not (one.is_idle() or one.is_closed()) for one in connections)


def _describe_client(client: Any) -> str:
    if name := get_client_state(client).name:
        return f"the client {name!r}"
    kind, url = type(client).__name__, getattr(client, "base_url", None)
    return f"an {kind} for {url}" if url and url.host else f"an {kind}"


def _patch_constructors() -> None:
    """Learn of each new client while somebody watches, and not else."""
    if not _watching:
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
    """Whether a request was sent by it, or it was entered; what httpx tells only in private."""
    return getattr(getattr(client, "_state", None), "name", None) == "OPENED"


def _tracking_init(constructor: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(constructor)
    def init(self: object, *args: object, **options: object) -> None:
        constructor(self, *args, **options)
        for watch in list(_watching):
            watch.track(self)

    return init
