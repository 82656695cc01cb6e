"""Opens shared clients when the app starts and closes them when it stops."""

import inspect
import keyword
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from http.cookiejar import CookieJar
from typing import Any, TypeVar, cast

import anyio
import anyio.to_thread
import httpx
from starlette.applications import Starlette
from starlette.datastructures import State

from ._app_state import publish_client, withdraw_client
from ._clients import register_client, unregister_client
from ._headers import has_control_characters
from ._httpx.client import client_class
from ._httpx.cookies import reject_cookies
from ._httpx.default_transport import (
    SHARED_OPTIONS,
    check_transport_options,
    choose_transport,
    current_async_library,
    enable_keepalive,
    find_env_proxy,
    is_library_client,
)
from ._httpx.flavors import get_library
from ._logging import logger
from .records import Observer, check_observers, count_open_exchanges

DRAIN_TIMEOUT = 5.0
"""Seconds that shutdown waits for open exchanges before it closes their client."""

CLIENT_CLOSE_TIMEOUT = 10.0
"""Seconds that a client may take to close before shutdown continues without it."""

App = TypeVar("App")
ClientFactory = Callable[..., object]
Lifespan = Callable[[App], AbstractAsyncContextManager[Mapping[str, object]]]
"""What Starlette and FastAPI accept as `lifespan=`: it is entered with the app and yields state."""


def client_lifespan(
    factory: ClientFactory = httpx.AsyncClient,
    /,
    *,
    name: str = "client",
    observers: Sequence[Observer] = (),
    **options: object,
) -> Lifespan[object]:
    """Return a lifespan that opens one shared client at startup and closes it at shutdown.

        app = FastAPI(lifespan=client_lifespan(base_url="https://api.example"))

    The client does not store cookies, because it would send one caller's cookies with the next
    caller's request. It does store them, as httpx usually does, if you pass `cookies=` (even an
    empty dict) or if the factory puts cookies on the client.

    The client gets an `AsyncioTransport`, made from `limits=`, `verify=`, `cert=` and `trust_env=`,
    if the factory is `httpx.AsyncClient` or `httpx2.AsyncClient` itself, the event loop is asyncio,
    and no option or proxy of the environment needs httpx's transport.
    `transport=httpx.AsyncHTTPTransport()` selects httpx's.

    The client is also an attribute of `app.state`, which `get_client` uses if the server drops the
    lifespan state. At shutdown, open exchanges get 5 seconds to end. Then the client is closed, and
    they end with the outcome `cancelled`.

    Arguments:
        factory: Called as `factory(**options)` at startup: `httpx.AsyncClient`, a subclass or a
            function. The client of an async function may be open already, so it is not entered
            with `async with`. An `httpx.Client` is closed in a worker thread.
        name: The client's name for `client_dependency(name)`. It is the key in the lifespan
            state. `get_client` finds the client named "client".
        observers: Functions that are called with the `ExchangeRecord` of each exchange on this
            client when the exchange has ended.
        options: Options of the factory: `base_url=`, `timeout=`, `limits=`, `headers=`, ...

    Returns:
        A lifespan for `FastAPI(lifespan=...)`, `Starlette(lifespan=...)` or `combine_lifespans`.

    Raises:
        TypeError: If `factory` is not callable, `transport=` is a class, an option such as
            `limits=` would be ignored because of `transport=`, `base_url=` is None, or an observer
            is async.
        ValueError: If `name` cannot be an attribute of `request.state`, or `base_url=` has no
            scheme or has a query. At startup, if a header of the client contains a line break.
        Exception: At startup, whatever the factory raises.
    """
    _check_name(name)
    _check_factory(factory, options)
    check_observers(observers)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncGenerator[dict[str, object]]:
        async with _open_client(factory, name, observers, options) as client:
            publish_client(app, name, client)
            try:
                yield {name: client}
            finally:
                withdraw_client(app, name, client)

    lifespan.__qualname__ = f"client_lifespan(name={name!r})"
    return lifespan


def combine_lifespans(
    *lifespans: Callable[[App], AbstractAsyncContextManager[Mapping[str, object] | None]],
) -> Lifespan[App]:
    """Return one lifespan that enters several in order and exits them in reverse order.

        lifespan = combine_lifespans(database_lifespan, client_lifespan(base_url=...))

    Arguments:
        lifespans: Any lifespans that Starlette accepts. Their states are merged.

    Returns:
        A lifespan that yields the merged state.

    Raises:
        TypeError: If an argument is not callable.
        RuntimeError: At startup, if two lifespans yield the same key. The lifespans that were
            entered are exited.
    """
    for lifespan in lifespans:
        if not callable(lifespan):
            raise TypeError(
                f"combine_lifespans({lifespan!r}): pass each lifespan as its own argument, "
                f"combine_lifespans(one, another)"
            )

    @asynccontextmanager
    async def combined(app: App) -> AsyncGenerator[dict[str, object]]:
        state: dict[str, object] = {}
        origins: dict[str, str] = {}
        async with AsyncExitStack() as stack:
            for lifespan in lifespans:
                origin = getattr(lifespan, "__qualname__", repr(lifespan))
                added = await stack.enter_async_context(lifespan(app)) or {}
                for key in added.keys() & state.keys():
                    raise RuntimeError(
                        f"combine_lifespans: {origins[key]} and {origin} both yield the state key "
                        f"{key!r}; rename one of them: client_lifespan(name='billing_client')"
                    )
                state.update(added)
                origins.update(dict.fromkeys(added, origin))
            yield state

    return combined


def _check_name(name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name) or hasattr(State(), name):
        raise ValueError(
            f"client_lifespan(name={name!r}): the name must be a Python identifier and usable as "
            f"an attribute of request.state, for example name='billing_client'"
        )


def _check_factory(factory: ClientFactory, options: Mapping[str, object]) -> None:
    if not callable(factory):
        raise TypeError(
            f"client_lifespan({factory!r}): pass the URL as base_url=..., or a factory such as "
            f"lambda: httpx.AsyncClient(...)"
        )
    if isinstance(factory, Starlette):
        raise TypeError(
            "client_lifespan was called with the app: call it when you create the app, "
            "lifespan=client_lifespan(base_url=...)"
        )
    if isinstance(transport := options.get("transport"), type):
        raise TypeError(
            f"transport={transport.__name__}: pass an instance, transport={transport.__name__}()"
        )
    check_transport_options(factory, options)
    if isinstance(factory, type):
        _check_base_url(options.get("base_url", ""))


def _check_base_url(base_url: object) -> None:
    if base_url is None:
        raise TypeError("base_url is None; is an environment variable missing?")
    if isinstance(base_url, str) and base_url and "://" not in base_url:
        raise ValueError(
            f"client_lifespan(base_url={base_url!r}): the URL has no scheme; write "
            f"'http://{base_url}' or 'https://{base_url}'"
        )
    if "?" in str(base_url):
        raise ValueError(
            f"client_lifespan(base_url={str(base_url)!r}): the query would be lost; pass it as "
            f"params="
        )


@asynccontextmanager
async def _open_client(
    factory: ClientFactory,
    name: str,
    observers: Sequence[Observer],
    options: Mapping[str, object],
) -> AsyncGenerator[object]:
    """Create, enter and register a client. Drain, unregister and close it at the end."""
    options = _add_transport(factory, name, options)
    is_plain = is_library_client(factory)
    create = cast(ClientFactory, client_class(cast(Any, factory))) if is_plain else factory
    client: Any = create(**options)
    if options.get("transport") is None and is_plain:
        enable_keepalive(client)
    if already_open := inspect.isawaitable(client):
        client = await client
    if not (hasattr(client, "aclose") or hasattr(client, "close")):
        raise TypeError(
            f"client_lifespan: the factory returned {client!r}, which has neither aclose() nor "
            f"close(); it must return a client, such as httpx.AsyncClient()"
        )
    try:
        if not already_open:
            await _enter(client)
        jar = getattr(getattr(client, "cookies", None), "jar", None)
        if "cookies" not in options and isinstance(jar, CookieJar) and not len(jar):
            reject_cookies(jar)
        _check_headers(client)
        register_client(client, name, observers, options.get("transport"))
        yield client
    finally:
        await _drain(name, client)
        unregister_client(client)
        await _close(name, client)


def _add_transport(
    factory: ClientFactory, name: str, options: Mapping[str, object]
) -> Mapping[str, object]:
    """Return the factory's options, with an `AsyncioTransport` if it can serve all of them."""
    env_proxy = find_env_proxy()
    choice = choose_transport(factory, options, current_async_library(), env_proxy)
    logger.debug("client %r uses %s: %s", name, choice.transport, choice.reason)
    if not choice.is_fast:
        _warn_of_env_proxy(name, options.get("transport"), env_proxy)
        return options
    shared = {key: options[key] for key in SHARED_OPTIONS if key in options}
    others = {key: options[key] for key in options if key not in ("limits", "verify", "cert")}
    return {**others, "transport": _create_transport(factory, shared)}


def _create_transport(factory: ClientFactory, options: Mapping[str, Any]) -> object:
    if get_library(cast(type[Any], factory)) is httpx:
        from .transport import AsyncioTransport

        return AsyncioTransport(**options)
    from .transport.httpx2 import AsyncioTransport as HTTPX2AsyncioTransport

    return HTTPX2AsyncioTransport(**options)


def _warn_of_env_proxy(name: str, transport: object, env_proxy: str | None) -> None:
    """Log a warning if an explicit `AsyncioTransport` bypasses the proxy of the environment."""
    is_fast = type(transport).__name__ == "AsyncioTransport"
    if is_fast and env_proxy is not None and getattr(transport, "trust_env", False):
        logger.warning(
            "client %r ignores %s, because it was given an AsyncioTransport; omit transport= to "
            "use the proxy, or pass trust_env=False to the transport",
            name, env_proxy,
        )  # fmt: skip


async def _enter(client: Any) -> None:
    if hasattr(client, "__aenter__"):
        await client.__aenter__()
    elif hasattr(client, "__enter__"):
        client.__enter__()


def _check_headers(client: Any) -> None:
    """Refuse a header that no request could be sent with. Secrets often end in a line break."""
    for name, value in getattr(getattr(client, "headers", None), "raw", ()):
        if has_control_characters([(name, value)]):
            raise ValueError(
                f"the client's header {name.decode('latin-1')!r} has a line break or another "
                f"control character in its value; call .strip() on the value"
            )


async def _drain(name: str, client: Any) -> None:
    """Wait for open exchanges. uvicorn does not wait for the ones that it has cancelled."""
    with anyio.move_on_after(DRAIN_TIMEOUT, shield=True) as scope:
        while count_open_exchanges(client):  # noqa: ASYNC110  an event would cost each exchange
            await anyio.sleep(0.01)
    if scope.cancelled_caught:
        logger.warning(
            "closing %r with %d exchanges open, after %g s",
            name, count_open_exchanges(client), DRAIN_TIMEOUT,
        )  # fmt: skip


async def _close(name: str, client: Any) -> None:
    """Close a sync or async client, shielded from cancellation, within `CLIENT_CLOSE_TIMEOUT`."""
    with anyio.move_on_after(CLIENT_CLOSE_TIMEOUT, shield=True) as scope:
        if hasattr(client, "aclose"):
            await client.aclose()
        else:
            await anyio.to_thread.run_sync(client.close, abandon_on_cancel=True)
    if scope.cancelled_caught:
        logger.error("gave up closing %r after %g s", name, CLIENT_CLOSE_TIMEOUT)
