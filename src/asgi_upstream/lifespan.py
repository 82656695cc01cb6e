"""Clients that open and close with the app."""

import inspect
import keyword
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx
from starlette.datastructures import State

logger = logging.getLogger("asgi_upstream")

CLOSE_TIMEOUT = 10.0
"""Seconds that a client may take to close before shutdown goes on without it."""


App = TypeVar("App")

Lifespan = Callable[[App], AbstractAsyncContextManager[Mapping[str, object]]]
"""What Starlette and FastAPI take as `lifespan=`: entered with the app, yields its state."""


class _KeepNoCookies(DefaultCookiePolicy):
    """Sends the cookies that were put into a jar, and never puts one there (RFC 6265 5.3)."""

    def set_ok(self, cookie: Any, request: Any) -> bool:
        return False


def client_lifespan(
    factory: Callable[..., object] = httpx.AsyncClient,
    /,
    *,
    name: str = "client",
    **options: object,
) -> Lifespan[object]:
    """A lifespan that shares one client: opened at start-up, closed at shutdown.

    `app = FastAPI(lifespan=client_lifespan(base_url="https://api.example"))`

    Arguments:
        factory: makes the client, as `factory(**options)`: `httpx.AsyncClient` or a subclass, a
            function of your own, async too, or `httpx.Client`, which is closed in a worker thread.
        name: the key of the client in the lifespan state; routes ask for it by
            `client_dependency(name)`, and `get_client` is the one for "client".
        options: what the factory takes (`base_url=`, `timeout=`, `limits=`, `headers=`, ...).

    The client keeps no cookies, for what one caller's upstream response sets would be sent with
    the next caller's request. With `cookies=`, even empty, or with cookies put there by the
    factory, it keeps them as httpx does.

    Raises:
        ValueError: at once, where `name` cannot be an attribute of `request.state`.
        Exception: at start-up, whatever the factory raises.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or hasattr(State(), name):
        raise ValueError(
            f"client_lifespan(name={name!r}): the name must be a Python identifier, free to be an "
            f"attribute of request.state; write for example name='billing_client'"
        )

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[dict[str, object]]:
        client = factory(**options)
        if inspect.isawaitable(client):
            client = await client
        if not (hasattr(client, "aclose") or hasattr(client, "close")):
            raise TypeError(
                f"client_lifespan: the factory returned {client!r}, which has neither aclose() "
                f"nor close(); it must return a client, such as httpx.AsyncClient()"
            )
        try:
            await _open(client)
            if "cookies" not in options:
                _keep_no_cookies(client)
            yield {name: client}
        finally:
            await _close(name, client)

    lifespan.__qualname__ = f"client_lifespan(name={name!r})"
    return lifespan


def combine_lifespans(
    *lifespans: Callable[[App], AbstractAsyncContextManager[Mapping[str, object] | None]],
) -> Lifespan[App]:
    """One lifespan of several: entered in order, their states merged, left in reverse.

    Each may be a `client_lifespan(...)` or any other that Starlette or FastAPI would take.

    Raises:
        RuntimeError: at start-up, where two yield the same key; those entered before are left.
    """

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[dict[str, object]]:
        state: dict[str, object] = {}
        origin: dict[str, str] = {}
        async with AsyncExitStack() as stack:
            for one in lifespans:
                described = getattr(one, "__qualname__", repr(one))
                for key, value in (await stack.enter_async_context(one(app)) or {}).items():
                    if key in state:
                        raise RuntimeError(
                            f"combine_lifespans: {origin[key]} and {described} both yield the "
                            f"state key {key!r}; give one another name, as in "
                            f"client_lifespan(name='billing_client')"
                        )
                    state[key] = value
                    origin[key] = described
            yield state

    return lifespan


async def _open(client: Any) -> None:
    if hasattr(client, "__aenter__"):
        await client.__aenter__()
    elif hasattr(client, "__enter__"):
        client.__enter__()


async def _close(name: str, client: Any) -> None:
    """Close a client, sync or async, whatever happens around it, but never for ever."""
    with anyio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
        if hasattr(client, "aclose"):
            await client.aclose()
        else:
            await anyio.to_thread.run_sync(client.close, abandon_on_cancel=True)
    if scope.cancelled_caught:
        logger.error("closing %r took more than %g s and was given up", name, CLOSE_TIMEOUT)


def _keep_no_cookies(client: Any) -> None:
    jar = getattr(getattr(client, "cookies", None), "jar", None)
    if isinstance(jar, CookieJar) and not len(jar):
        jar.set_policy(_KeepNoCookies())
