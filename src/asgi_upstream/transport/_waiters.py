"""The requests that wait for a connection of a pool."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ._connection import HTTP11Connection
from ._pool_state import Origin


@dataclass(slots=True, eq=False)
class ConnectAttempt:
    """A connect in progress. Its failure is the failure of its waiter.

    Attributes:
        waiter: None if no request needs the connect any more. Then it is spare.
        pool_is_closed: Whether the pool was closed, so that the connection must be closed too.
    """

    origin: Origin
    waiter: "Waiter | None"
    task: asyncio.Task[HTTP11Connection]
    pool_is_closed: bool = False


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits for a connection."""

    origin: Origin
    sequence: int  # in order of arrival, over all origins
    connection: asyncio.Future[HTTP11Connection]
    connect_timeout: float | None
    attempt: ConnectAttempt | None = None


class WaitQueue:
    """Waiters in order of arrival: all of one origin, and those without a connect of all origins.

    Waiters whose future is done are skipped. They are removed when their tasks continue.
    """

    def __init__(self) -> None:
        # OrderedDicts, because a plain dict gets slow if entries leave from its front.
        self._by_origin: dict[Origin, OrderedDict[Waiter, None]] = {}
        self._without_connect: OrderedDict[Waiter, None] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether any request waits."""
        return bool(self._by_origin)

    def __iter__(self) -> Iterator[Waiter]:
        """Iterate over a copy."""
        return iter([waiter for waiters in self._by_origin.values() for waiter in waiters])

    def count(self) -> dict[Origin, int]:
        """Return the number of waiters for each origin that has some."""
        return {origin: len(waiters) for origin, waiters in self._by_origin.items()}

    def add(self, waiter: Waiter) -> None:
        self._by_origin.setdefault(waiter.origin, OrderedDict())[waiter] = None
        self._without_connect[waiter] = None

    def remove(self, waiter: Waiter) -> None:
        self._without_connect.pop(waiter, None)
        waiters = self._by_origin.get(waiter.origin)
        if waiters is not None:
            waiters.pop(waiter, None)
            if not waiters:
                del self._by_origin[waiter.origin]

    def start_connect(self, waiter: Waiter, attempt: ConnectAttempt) -> None:
        """Note that a connect for `waiter` is in progress."""
        waiter.attempt = attempt
        del self._without_connect[waiter]

    def first(self, origin: Origin) -> Waiter | None:
        """Return the first waiter of one origin."""
        waiters = self._by_origin.get(origin)
        return _find_waiting(waiters) if waiters else None

    def first_without_connect(self) -> Waiter | None:
        """Return the first waiter of all origins for which no connect is in progress."""
        return _find_waiting(self._without_connect) if self._without_connect else None


def _find_waiting(waiters: Iterable[Waiter]) -> Waiter | None:
    return next((waiter for waiter in waiters if not waiter.connection.done()), None)
