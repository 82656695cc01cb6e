"""Records made by hand, and clients that only seem to be at work."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from asgi_upstream.records import ExchangeRecord, Outcome

_COMPLETED = ExchangeRecord(
    client="client",
    method="GET",
    host="api.example:8443",
    route="/items/{id}",
    status=200,
    outcome=Outcome.COMPLETED,
    exception=None,
    duration=2.0,
    time_to_headers=0.02,
    time_to_first_byte=0.2,
    bytes_sent=7,
    bytes_received=1024,
    connection_reused=True,
)


def record(**changes: Any) -> ExchangeRecord:
    """A completed exchange, but for what is said to be otherwise."""
    return replace(_COMPLETED, **changes)


def failure(outcome: Outcome = Outcome.CONNECT_FAILED, **changes: Any) -> ExchangeRecord:
    """One that failed before the upstream's headers."""
    return record(
        outcome=outcome,
        status=None,
        time_to_headers=None,
        time_to_first_byte=None,
        **changes,
    )


@dataclass(frozen=True)
class _PoolState:
    waiting: int


class _Transport:
    def __init__(self, waiting: int) -> None:
        self._waiting = waiting

    def pool_state(self) -> _PoolState:
        return _PoolState(self._waiting)


class Busy:
    """In place of the ledger of a client with exchanges under way."""

    def __init__(self, open: int, waiting: int | None = None) -> None:
        self.open_count = open
        self.supports_exchanges = True
        self.transport = object() if waiting is None else _Transport(waiting)


def open_clients_are(patch: pytest.MonkeyPatch, *clients: tuple[str, Busy]) -> None:
    def opened() -> Iterator[tuple[str, Busy]]:
        return iter(clients)

    patch.setattr("asgi_upstream.instrumentation._gauges.iter_registered", opened)
