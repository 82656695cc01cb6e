"""Finds the client for a `ReverseProxy`, with FastAPI's `dependency_overrides`."""

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, cast

import httpx
from starlette.requests import HTTPConnection

from .._hooks import maybe_await
from ..dependencies import client_dependency, find_client

_EXIT_STACKS = ("fastapi_inner_astack", "fastapi_middleware_astack")
"""Scope keys of FastAPI's exit stacks. They close what dependencies with `yield` have opened."""


async def resolve_client(connection: HTTPConnection, name: str) -> httpx.AsyncClient:
    """Return the client with this name, or what overrides it in the connection's app.

    Raises:
        RuntimeError: If there is no such client.
        TypeError: If the override needs more than the connection.
    """
    app = connection.scope.get("app")
    overrides: Mapping[Any, Callable[..., Any]] | None = getattr(app, "dependency_overrides", None)
    if overrides:
        override = overrides.get(client_dependency(name))
        if override is not None:
            client: httpx.AsyncClient = await _call_override(override, connection)
            return client
    return find_client(connection, name)


async def _call_override(override: Callable[..., Any], connection: HTTPConnection) -> Any:
    arguments = [connection] if _count_required(override) else []
    if inspect.isasyncgenfunction(override):
        async_manager = asynccontextmanager(cast(Callable[..., AsyncGenerator[Any]], override))
        return await _find_exit_stack(connection).enter_async_context(async_manager(*arguments))
    if inspect.isgeneratorfunction(override):
        manager = contextmanager(cast(Callable[..., Generator[Any]], override))
        return _find_exit_stack(connection).enter_context(manager(*arguments))
    return await maybe_await(override(*arguments))


def _count_required(override: Callable[..., Any]) -> int:
    required = [
        parameter.name
        for parameter in inspect.signature(override).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(required) > 1:
        raise TypeError(
            f"the override of a client's dependency needs {', '.join(required)}: a ReverseProxy "
            f"calls it with the connection only"
        )
    return len(required)


def _find_exit_stack(connection: HTTPConnection) -> AsyncExitStack:
    for key in _EXIT_STACKS:
        stack: AsyncExitStack | None = connection.scope.get(key)
        if stack is not None:
            return stack
    raise TypeError(
        "the override of a client's dependency has a `yield`, and this version of FastAPI has no "
        "exit stack for it: return a client that the test opens and closes"
    )
