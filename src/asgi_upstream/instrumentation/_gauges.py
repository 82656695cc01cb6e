"""Counts the exchanges in progress on the clients that lifespans have open."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .._clients import iter_registered


class OpenExchangeCount(NamedTuple):
    """The exchanges in progress on the clients of one name."""

    open: int
    waiting: int | None
    """The open exchanges that wait for a connection. None if the transport does not count them."""


def open_exchange_counts() -> Mapping[str, OpenExchangeCount]:
    """Return the counts per client name, summed if several apps use the same name.

    A sync client has no exchanges, so its count of 0 would only mislead.
    """
    counts: dict[str, OpenExchangeCount] = {}
    for name, state in iter_registered():
        if not state.supports_exchanges:
            continue
        total = counts.get(name, OpenExchangeCount(0, None))
        waiting = _count_waiting(state.transport)
        if waiting is None:
            waiting = total.waiting
        else:
            waiting += total.waiting or 0
        counts[name] = OpenExchangeCount(total.open + state.open_count, waiting)
    return counts


def _count_waiting(transport: Any) -> int | None:
    pool_state = getattr(transport, "pool_state", None)
    if pool_state is None:
        return None
    waiting: int = pool_state().waiting
    return waiting
