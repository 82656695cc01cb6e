"""What is under way now, on the clients that `client_lifespan` has open."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .._clients import iter_registered


class OpenExchangeCount(NamedTuple):
    """What is under way on the clients of one name."""

    open: int
    waiting: int | None
    """Of those open, the ones that wait for a connection; None where the transport cannot say."""


def open_exchange_counts() -> Mapping[str, OpenExchangeCount]:
    """By the name of the client; two apps of one process may have a client of the same name."""
    counts: dict[str, OpenExchangeCount] = {}
    for name, ledger in iter_registered():
        before = counts.get(name, OpenExchangeCount(0, None))
        waiting = _waiting(ledger.transport)
        if waiting is not None and before.waiting is not None:
            waiting += before.waiting
        elif waiting is None:
            waiting = before.waiting
        counts[name] = OpenExchangeCount(before.open + ledger.open_count, waiting)
    return counts


def _waiting(transport: Any) -> int | None:
    pool_state = getattr(transport, "pool_state", None)
    if pool_state is None:
        return None
    waiting: int = pool_state().waiting
    return waiting
