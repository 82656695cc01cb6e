"""The numbers of a pool, for gauges and logs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Origin = tuple[bytes, bytes, int, str | None]
"""Scheme, host, port, and the TLS server name if it differs from the host."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """The number of connections and waiting requests, in total or for one origin.

    Attributes:
        open: Open connections, in use or idle.
        idle: Open connections that are not in use.
        connecting: Connections that are being opened.
        waiting: Requests that wait for a connection, including those with a connect in progress.
        origins: The same numbers for each origin, by "http://host:port".
    """

    open: int
    idle: int
    connecting: int
    waiting: int
    origins: Mapping[str, "PoolState"] = field(default_factory=dict[str, "PoolState"])


def add_up(states: Mapping[Origin, PoolState]) -> PoolState:
    """Return the total, with the state of each origin.

    Origins that differ only in the TLS server name are one.
    """
    by_url: dict[str, PoolState] = {}
    for (scheme, raw_host, port, _), state in states.items():
        host = raw_host.decode()
        url = f"{scheme.decode()}://{f'[{host}]' if ':' in host else host}:{port}"
        by_url[url] = _add(state, by_url[url]) if url in by_url else state
    total = PoolState(0, 0, 0, 0, by_url)
    for state in by_url.values():
        total = _add(total, state)
    return total


def _add(first: PoolState, second: PoolState) -> PoolState:
    return PoolState(
        first.open + second.open,
        first.idle + second.idle,
        first.connecting + second.connecting,
        first.waiting + second.waiting,
        first.origins,
    )
