"""What is under way now, on the clients that `client_lifespan` has open."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..records import open_ledgers


class Live(NamedTuple):
    """What is under way on the clients of one name."""

    open: int
    waiting: int | None
    """Of those open, the ones that wait for a connection; None where the transport cannot say."""


def live() -> Mapping[str, Live]:
    """By the name of the client; two apps of one process may have a client of the same name."""
    all_of: dict[str, Live] = {}
    for name, ledger in open_ledgers():
        before = all_of.get(name, Live(0, None))
        waiting = _waiting(ledger.transport)
        if waiting is not None and before.waiting is not None:
            waiting += before.waiting
        elif waiting is None:
            waiting = before.waiting
        all_of[name] = Live(before.open + ledger.open, waiting)
    return all_of


def _waiting(transport: Any) -> int | None:
    pool_state = getattr(transport, "pool_state", None)
    if pool_state is None:
        return None
    waiting: int = pool_state().waiting
    return waiting
