"""Clients that open and close with the app."""

import inspect
import keyword
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx
from starlette.applications import Starlette
from starlette.datastructures import State

from ._clients import register_client, unregister_client
from ._headers import has_control_characters
from ._logging import logger
from .records import Observer, check_observers, count_open_exchanges

DRAIN_TIMEOUT = 5.0
"""Seconds that shutdown waits for exchanges which are under way on a client, to close it then."""

CLOSE_TIMEOUT = 10.0
"""Seconds that a client may take to close before shutdown goes on without it."""

App = TypeVar("App")
Lifespan = Callable[[App], AbstractAsyncContextManager[Mapping[str, object]]]
"""What Starlette and FastAPI take as `lifespan=`: entered with the app, yields its state."""


def client_lifespan(
    factory: Callable[..., object] = httpx.AsyncClient,
    /,
    *,
    name: str = "client",
    observers: Sequence[Observer] = (),
    **options: object,
) -> Lifespan[object]:
    """A lifespan that shares one client: opened at start-up, closed at shutdown.

        app = FastAPI(lifespan=client_lifespan(base_url="https://api.example"))

    The client keeps no cookies, for what an upstream sets for one caller would be sent for the
    next. With `cookies=`, even empty, or cookies put there by the factory, it does as httpx does.

    Arguments:
        factory: makes the client, as `factory(**options)`: `httpx.AsyncClient`, a subclass, a
            function; or `httpx.Client`, which a worker thread closes. What an async function
            returns is taken as open, so it may have used the client.
        name: the key in the lifespan state, for `client_dependency(name)`; `get_client` is the one
            for "client".
        observers: functions that get a `ExchangeRecord` of each exchange on this client, at its
        end. options: what the factory takes: `base_url=`, `timeout=`, `limits=`, `headers=`, ...

    Raises:
        ValueError, TypeError: at once, where `name` cannot be an attribute of `request.state`, or
            the factory is no function, `base_url=` has no scheme, `transport=` is a class, or an
            observer async; at start-up, where a header of the client's has a line break. Causes and
            fixes: [docs/errors.md][when-the-app-is-written-or-started].
        Exception: at start-up, whatever the factory raises.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or hasattr(State(), name):
        raise ValueError(
            f"client_lifespan(name={name!r}): the name must be a Python identifier, free to be an "
            f"attribute of request.state; write for example name='billing_client'"
        )

    if not callable(factory):
        raise TypeError(
            f"client_lifespan({factory!r}): give base_url= by its name, or a factory such as "
            f"lambda: httpx.AsyncClient(...)"
        )
    if isinstance(factory, Starlette):
        raise TypeError(
            "client_lifespan was given the app in place of a factory: call it where it is given, "
            "lifespan=client_lifespan(base_url=...)"
        )
    if isinstance(kind := options.get("transport"), type):
        made = f"{kind.__name__}()"
        raise TypeError(f"transport={kind.__name__}: give an object, transport={made}")
    check_observers(observers)
    if isinstance(factory, type):
        _check_base_url(options.get("base_url", ""))

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncGenerator[dict[str, object]]:
        client: Any = factory(**options)
        if already_open := inspect.isawaitable(client):
            client = await client
        if not (hasattr(client, "aclose") or hasattr(client, "close")):
            raise TypeError(
                f"client_lifespan: the factory returned {client!r}, which has neither aclose() "
                f"nor close(); it must return a client, such as httpx.AsyncClient()"
            )
        try:
            if hasattr(client, "__aenter__") and not already_open:
                await client.__aenter__()
            elif hasattr(client, "__enter__") and not already_open:
                client.__enter__()
            jar = getattr(getattr(client, "cookies", None), "jar", None)
            if "cookies" not in options and isinstance(jar, CookieJar) and not len(jar):
                jar.set_policy(_RejectCookies())
                jar.keeps_none = True  # type: ignore[attr-defined]  # for shortcut.py
            _check_headers(client)
            register_client(client, name, observers, options.get("transport"))
            yield {name: client}
        finally:
            await _drain(name, client)
            unregister_client(client)
            await _close(name, client)

    lifespan.__qualname__ = f"client_lifespan(name={name!r})"
    return lifespan


def combine_lifespans(
    *lifespans: Callable[[App], AbstractAsyncContextManager[Mapping[str, object] | None]],
) -> Lifespan[App]:
    """One lifespan of several: entered in order, their states merged, left in reverse.

    Raises:
        TypeError: at once, for what is no lifespan.
        RuntimeError: at start-up, where two yield the same key; those entered before are left.
            Causes and fixes: [docs/errors.md][when-the-app-is-written-or-started].
    """
    for one in lifespans:
        if not callable(one):
            raise TypeError(
                f"combine_lifespans({one!r}): give each lifespan as an argument of its own, "
                f"combine_lifespans(one, another)"
            )

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncGenerator[dict[str, object]]:
        state: dict[str, object] = {}
        origins: dict[str, str] = {}
        async with AsyncExitStack() as stack:
            for one in lifespans:
                origin = getattr(one, "__qualname__", repr(one))
                added = await stack.enter_async_context(one(app)) or {}
                for key in added.keys() & state.keys():
                    raise RuntimeError(
                        f"combine_lifespans: {origins[key]} and {origin} both yield the state key "
                        f"{key!r}; give one another name: client_lifespan(name='billing_client')"
                    )
                state.update(added)
                origins.update(dict.fromkeys(added, origin))
            yield state

    return lifespan


def _check_base_url(base_url: object) -> None:
    if base_url is None:
        raise TypeError("base_url is None; is an environment variable missing?")
    if isinstance(base_url, str) and base_url and "://" not in base_url:
        raise ValueError(
            f"client_lifespan(base_url={base_url!r}): it has no scheme, write 'http://{base_url}' "
            f"or 'https://{base_url}'"
        )


def _check_headers(client: Any) -> None:
    """Secrets often end in a line break, and with that no request could be sent."""
    for name, value in getattr(getattr(client, "headers", None), "raw", ()):
        if has_control_characters([(name, value)]):
            raise ValueError(
                f"the client's header {name.decode('latin-1')!r} has a line break or another "
                f"control character in its value; call .strip() on the value"
            )


class _RejectCookies(DefaultCookiePolicy):
    """Lets the cookies in a jar be sent, and none be put there (RFC 6265 5.3)."""

    def set_ok(self, cookie: object, request: object) -> bool:
        return False


async def _drain(name: str, client: Any) -> None:
    """Wait for exchanges that are ending, as uvicorn does not for those that it has cancelled."""
    with anyio.move_on_after(DRAIN_TIMEOUT, shield=True) as scope:
        while count_open_exchanges(client):  # noqa: ASYNC110  an event would cost each exchange
            await anyio.sleep(0.01)
    if scope.cancelled_caught:
        logger.warning(
            "closing %r with %d exchanges open, after %g s",
            name, count_open_exchanges(client), DRAIN_TIMEOUT,
        )  # fmt: skip


async def _close(name: str, client: Any) -> None:
    """Close a client, sync or async, whatever happens around it, but never for ever."""
    with anyio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
        if hasattr(client, "aclose"):
            await client.aclose()
        else:
            await anyio.to_thread.run_sync(client.close, abandon_on_cancel=True)
    if scope.cancelled_caught:
        logger.error("gave up closing %r after %g s", name, CLOSE_TIMEOUT)
