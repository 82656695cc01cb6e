"""Keeps open clients on `app.state`, for servers and frameworks that drop the lifespan state.

Ray Serve runs the lifespan and drops what it yields. Litestar does the same. A module global would
not do: Ray Serve pickles the app, and a process can have several apps.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ._clients import get_client_state

_APP_STATE = "_asgi_upstream_app_state"
"""The attribute of the app's router that refers to `app.state`."""


def publish_client(app: object, name: str, client: object) -> None:
    """Put a client on `app.state`, unless the app has something else there."""
    state = getattr(app, "state", None)
    if state is None:
        return
    router = getattr(app, "router", None)
    if router is not None:
        with suppress(AttributeError):  # with __slots__
            setattr(router, _APP_STATE, state)
    existing = getattr(state, name, None)
    if existing is None or get_client_state(existing).name == name:
        setattr(state, name, client)


def withdraw_client(app: object, name: str, client: object) -> None:
    """Remove a client from `app.state`."""
    state = getattr(app, "state", None)
    if getattr(state, name, None) is client:
        delattr(state, name)


def find_published_client(scope: Mapping[str, Any], name: str) -> object | None:
    """Return the client on the `app.state` of the app, or of the app that it is mounted in.

    Starlette replaces `scope["app"]` in a mounted app, but `scope["router"]` stays the outermost
    app's. Litestar has its app under a key of its own.
    """
    for state in (
        getattr(scope.get("app"), "state", None),
        getattr(scope.get("router"), _APP_STATE, None),
        getattr(scope.get("litestar_app"), "state", None),
    ):
        client: object | None = getattr(state, name, None)
        if client is not None:
            return client
    return None
