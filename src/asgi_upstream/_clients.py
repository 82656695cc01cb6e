"""The state that is kept for each client: its name, its observers and its open exchanges."""

import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import httpx

if TYPE_CHECKING:
    from .records import Observer


class OpenExchange(Protocol):
    """An exchange that is open."""

    request: httpx.Request


class ClientState:
    """What is kept of a client: its name, who observes it, and which exchanges are open."""

    __slots__ = ("name", "observers", "open_exchanges", "transport")

    def __init__(self) -> None:
        self.name: str | None = None  # where a lifespan has it open
        self.observers: Sequence[Observer] = ()
        self.open_exchanges: set[OpenExchange] = set()
        self.transport: object = None  # where a lifespan was given one

    @property
    def open_count(self) -> int:
        """How many exchanges are under way."""
        return len(self.open_exchanges)


_client_states: weakref.WeakKeyDictionary[object, ClientState] = weakref.WeakKeyDictionary()


def get_client_state(client: object) -> ClientState:
    """The client's ledger, opened where it has none."""
    try:
        ledger = _client_states.get(client)
        if ledger is None:
            ledger = _client_states[client] = ClientState()
    except TypeError:  # no key of a dict, or not to be referred to weakly: nothing is kept of it
        ledger = ClientState()
    return ledger


def register_client(
    client: object, name: str, observers: "Sequence[Observer]", transport: object = None
) -> None:
    """Open the ledger of a client that has a name.

    Raises:
        TypeError: this client cannot be observed.
    """
    ledger = get_client_state(client)
    ledger.name, ledger.observers, ledger.transport = name, observers, transport
    if observers and get_client_state(client) is not ledger:
        raise TypeError(
            f"client_lifespan(observers=...): exchanges on {type(client).__name__} cannot be told "
            f"apart, for it is not hashable or cannot be referred to weakly"
        )


def unregister_client(client: object) -> None:
    """The client is closed: it has no name any more."""
    get_client_state(client).name = None


def iter_client_states() -> Iterator[tuple[Any, ClientState]]:
    """Those of all clients that are there, with the clients; from any thread."""
    for reference in _client_states.keyrefs():
        client = reference()
        if client is not None and (ledger := _client_states.get(client)) is not None:
            yield client, ledger


def iter_registered() -> Iterator[tuple[str, ClientState]]:
    """Those of the clients that a lifespan has opened and not closed yet, with their names."""
    for ledger in list(_client_states.values()):
        if ledger.name is not None:
            yield ledger.name, ledger
