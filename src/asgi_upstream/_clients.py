"""The registry of clients: the name, observers and open exchanges of each."""

import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import httpx

if TYPE_CHECKING:
    from .records import Observer


class OpenExchange(Protocol):
    """An exchange in progress."""

    request: httpx.Request


class ClientState:
    """The state kept for a client: its name, observers and open exchanges."""

    __slots__ = (
        "is_closing",
        "name",
        "observers",
        "open_exchanges",
        "supports_exchanges",
        "transport",
    )

    def __init__(self) -> None:
        self.name: str | None = None  # only while a lifespan has the client open
        self.observers: Sequence[Observer] = ()
        self.open_exchanges: set[OpenExchange] = set()
        self.supports_exchanges: bool = True  # not if the lifespan opened a sync client
        self.is_closing: bool = False  # the lifespan closes it under the exchanges still open
        self.transport: object = None  # the one that the lifespan created or was given

    @property
    def open_count(self) -> int:
        """The number of exchanges in progress."""
        return len(self.open_exchanges)


_client_states: weakref.WeakKeyDictionary[object, ClientState] = weakref.WeakKeyDictionary()


def get_client_state(client: object) -> ClientState:
    """Return the client's state, creating it if needed."""
    try:
        state = _client_states.get(client)
        if state is None:
            state = _client_states[client] = ClientState()
    except TypeError:  # not hashable, or without weak references: it cannot be registered
        state = ClientState()
    return state


def register_client(
    client: object, name: str, observers: "Sequence[Observer]", transport: object = None
) -> None:
    """Register a client that a lifespan has opened.

    Raises:
        TypeError: If there are observers and the client cannot be registered.
    """
    state = get_client_state(client)
    state.name, state.observers, state.transport = name, observers, transport
    state.supports_exchanges = hasattr(client, "send") and hasattr(client, "aclose")
    state.is_closing = False
    if observers and get_client_state(client) is not state:
        raise TypeError(
            f"client_lifespan(observers=...): {type(client).__name__} cannot be observed, because "
            f"it is not hashable or has no __weakref__"
        )


def unregister_client(client: object) -> None:
    """Unregister a client that is about to be closed.

    Exchanges that are open now end as cancelled: the upstream does not close their connections.
    """
    state = get_client_state(client)
    state.name, state.is_closing = None, True


def iter_client_states() -> Iterator[tuple[Any, ClientState]]:
    """Iterate over all clients that exist and their states. Safe in any thread."""
    for reference in _client_states.keyrefs():
        client = reference()
        if client is not None and (state := _client_states.get(client)) is not None:
            yield client, state


def iter_registered() -> Iterator[tuple[str, ClientState]]:
    """Iterate over the names and states of the clients that lifespans have open."""
    for state in list(_client_states.values()):
        if state.name is not None:
            yield state.name, state
