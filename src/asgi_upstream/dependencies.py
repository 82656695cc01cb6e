"""Finds a shared client for a request, a WebSocket or any other connection."""

from collections.abc import Awaitable, Callable, Collection
from functools import cache
from typing import Any, TypeVar, cast, overload

import httpx
from starlette.requests import HTTPConnection

from ._app_state import find_published_client

ClientT = TypeVar("ClientT")

_MISSING_CLIENT = """\
there is no client named {name!r} in this app's lifespan state, which holds {keys}.{suggestion}
Likely causes:
(1) The app has no such lifespan. Write FastAPI(lifespan={call}), or
    combine_lifespans(other_lifespan, {call}).
(2) Only a mounted sub-app has it. Starlette runs only the lifespan of the outermost app.
(3) A test client does not run it. Write `with TestClient(app) as client:`, or use asgi-lifespan:
    `async with LifespanManager(app) as manager:` with httpx.ASGITransport(manager.app).
(4) The server does not run it (--lifespan off, daphne, a2wsgi, Mangum, Azure Functions). See
    docs/servers.md for a wrapper that does.
(5) Your own lifespan does not pass the state on. Write
    `async with {call}(app) as state: yield state`."""


async def get_client(connection: HTTPConnection) -> httpx.AsyncClient:
    """Return the app's client named "client", which `client_lifespan()` has opened.

        client: Annotated[httpx.AsyncClient, Depends(get_client)]  # in FastAPI
        client = await get_client(request)                         # elsewhere

    Arguments:
        connection: A request, a WebSocket, or `HTTPConnection(scope)` in a middleware.

    Raises:
        RuntimeError: If there is no such client. The message lists the likely causes. See
            [docs/errors.md][runtimeerrors].
    """
    return find_client(connection, "client")


@overload
def client_dependency(name: str) -> Callable[[HTTPConnection], Awaitable[httpx.AsyncClient]]: ...
@overload
def client_dependency(
    name: str, client_type: type[ClientT]
) -> Callable[[HTTPConnection], Awaitable[ClientT]]: ...
def client_dependency(name: str, client_type: type[object] = httpx.AsyncClient) -> object:
    """Return a function like `get_client` for a client with another name or class.

        Billing = Annotated[httpx.AsyncClient, Depends(client_dependency("billing"))]

    Calls with the same name return the same function, so that `app.dependency_overrides` finds it.

    Arguments:
        name: The `name=` of `client_lifespan`.
        client_type: The client's class, for type checkers: `httpx2.AsyncClient`, `httpx.Client`.

    Returns:
        An async function that takes a connection and returns the client.
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
    """Return the client with this name from the lifespan state, or from `app.state`."""
    state: dict[str, Any] = connection.scope.get("state") or {}
    client = state[name] if name in state else find_published_client(connection.scope, name)
    if client is not None:
        return cast(httpx.AsyncClient, client)
    raise RuntimeError(_describe_missing_client(name, state))


def _describe_missing_client(name: str, state: Collection[str]) -> str:
    import difflib  # only this message needs it

    close_matches = difflib.get_close_matches(name, state, 1)
    suggestion = f" Did you mean {close_matches[0]!r}?" if close_matches else ""
    argument = "" if name == "client" else f"name={name!r}, "
    return _MISSING_CLIENT.format(
        name=name,
        keys=", ".join(map(repr, state)) or "nothing",
        suggestion=suggestion,
        call=f"client_lifespan({argument}...)",
    )
