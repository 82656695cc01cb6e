"""Finding a shared client from a request, a WebSocket or any other connection."""

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, TypeVar, overload

import httpx
from starlette.requests import HTTPConnection

ClientT = TypeVar("ClientT")


async def get_client(connection: HTTPConnection) -> httpx.AsyncClient:
    """The app's client named "client", which `client_lifespan()` opened.

    In FastAPI: `Annotated[httpx.AsyncClient, Depends(get_client)]`. Elsewhere, with a request, a
    WebSocket, or `HTTPConnection(scope)` in a middleware: `await get_client(request)`.

    Raises:
        RuntimeError: there is no such client; the message tells the likely causes, and more is in
            [docs/errors.md][when-the-app-is-written-or-started].
    """
    return find_client(connection, "client")


@overload
def client_dependency(name: str) -> Callable[[HTTPConnection], Awaitable[httpx.AsyncClient]]: ...
@overload
def client_dependency(
    name: str, client_type: type[ClientT]
) -> Callable[[HTTPConnection], Awaitable[ClientT]]: ...
def client_dependency(name: str, client_type: type[object] = httpx.AsyncClient) -> object:
    """What `get_client` is for "client", for a client of another name, or of another class.

    The same name gives the same function, so that `app.dependency_overrides` finds it.

    Arguments:
        name: what `client_lifespan(name=...)` was given.
        client_type: the client's class, for type checkers: `httpx2.AsyncClient`, `httpx.Client`.
    """
    return _cached_dependency(name)


@cache
def _cached_dependency(name: str) -> Callable[[HTTPConnection], Awaitable[httpx.AsyncClient]]:
    if name == "client":
        return get_client

    async def dependency(connection: HTTPConnection) -> httpx.AsyncClient:
        return find_client(connection, name)

    return dependency


def find_client(connection: HTTPConnection, name: str) -> httpx.AsyncClient:
    """The client of that name in the lifespan state of the connection's app."""
    state: dict[str, Any] = connection.scope.get("state") or {}
    if name in state:
        client: httpx.AsyncClient = state[name]
        return client
    argument = "" if name == "client" else f"name={name!r}, "
    import difflib  # for this message only

    close_matches = difflib.get_close_matches(name, state, 1)
    raise RuntimeError(
        f"there is no client named {name!r} in this app's lifespan state, which holds "
        f"{', '.join(map(repr, state)) or 'nothing'}. "
        f"{f'Did you mean {close_matches[0]!r}? ' if close_matches else ''}Likely "
        f"causes: (1) the app has no such "
        f"lifespan: write app = FastAPI(lifespan=client_lifespan({argument}...)), or beside "
        f"another combine_lifespans(the_other, client_lifespan({argument}...)); (2) only a "
        f"mounted sub-app has it, and Starlette runs the lifespan of the outermost app alone: "
        f"pass it there; (3) a test client does not run it: write `with TestClient(app) as "
        f"client:`, or use asgi-lifespan's LifespanManager around httpx.ASGITransport; (4) the "
        f"server was started with the lifespan off; (5) a lifespan of your own enters this one and "
        f"does not pass its state on: write `async with client_lifespan(...)(app) as state: yield "
        f"state`."
    )
