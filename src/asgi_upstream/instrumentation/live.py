"""What is under way now, on the clients that `client_lifespan` has open."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..records import open_clients, open_exchanges


class Live(NamedTuple):
    """What is under way on the clients of one name."""

    open: int
    waiting: int | None
    """Of those open, the ones that wait for a connection; None where the transport cannot say."""


def live() -> Mapping[str, Live]:
    """By the name of the client; two apps of one process may have a client of the same name."""
    all_of: dict[str, Live] = {}
    for name, client in open_clients():
        before = all_of.get(name, Live(0, None))
        waiting = _waiting(client)
        if waiting is not None and before.waiting is not None:
            waiting += before.waiting
        elif waiting is None:
            waiting = before.waiting
        all_of[name] = Live(before.open + open_exchanges(client), waiting)
    return all_of


def _waiting(client: Any) -> int | None:
    # httpx has no public way from a client to its transport. Another client has none at all.
    pool_state = getattr(getattr(client, "_transport", None), "pool_state", None)
    if pool_state is None:
        return None
    waiting: int = pool_state().waiting
    return waiting
