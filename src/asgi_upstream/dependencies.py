"""Finding a shared client from a request, a WebSocket or any other connection."""

from collections.abc import Awaitable, Callable
from functools import cache

import httpx
from starlette.requests import HTTPConnection

ClientDependency = Callable[[HTTPConnection], Awaitable[httpx.AsyncClient]]


async def get_client(connection: HTTPConnection) -> httpx.AsyncClient:
    """The app's client named "client", which `client_lifespan()` opened.

    In FastAPI: `Annotated[httpx.AsyncClient, Depends(get_client)]`. Elsewhere, with a request, a
    WebSocket, or `HTTPConnection(scope)` in a middleware: `await get_client(request)`.

    Raises:
        RuntimeError: there is no such client; the message tells the likely causes.
    """
    return client_of(connection, "client")


@cache
def client_dependency(name: str) -> ClientDependency:
    """The dependency for a client of another name: as `get_client` is for "client".

    The same name gives the same function, so that `app.dependency_overrides` finds it.
    """
    if name == "client":
        return get_client

    async def dependency(connection: HTTPConnection) -> httpx.AsyncClient:
        return client_of(connection, name)

    dependency.__name__ = f"get_{name}"
    dependency.__doc__ = f"The app's client named {name!r}, which client_lifespan() opened."
    return dependency


def client_of(connection: HTTPConnection, name: str) -> httpx.AsyncClient:
    """The client of that name in the lifespan state of `connection`."""
    try:
        client: httpx.AsyncClient = connection.scope["state"][name]
    except KeyError:
        raise RuntimeError(_missing(connection, name)) from None
    return client


def _missing(connection: HTTPConnection, name: str) -> str:
    state = connection.scope.get("state")
    argument = "" if name == "client" else f"name={name!r}, "
    line = f"app = FastAPI(lifespan=client_lifespan({argument}...))"
    if state:
        there = ", ".join(repr(key) for key in state)
        return (
            f"there is no client named {name!r} in this app's lifespan state, which holds {there}. "
            f"Add one with: {line}; or, beside a lifespan of your own, with "
            f"combine_lifespans(yours, client_lifespan({argument}...))."
        )
    return (
        f"there is no client named {name!r}, for this app's lifespan did not run or yielded "
        f"nothing. Likely causes: "
        f"(1) the app has no lifespan: write {line}; "
        f"(2) only a mounted sub-app has it: Starlette runs the lifespan of the outermost app "
        f"alone, so pass it there; "
        f"(3) in a test, the client does not run it: write `with TestClient(app) as client:`, or "
        f"use asgi-lifespan's LifespanManager around httpx.ASGITransport; "
        f"(4) the server was started with the lifespan off."
    )
