"""Calls hooks that may be sync or async."""

import inspect
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def maybe_await(result: T | Awaitable[T]) -> T:
    """Return the result of a hook, awaiting it if the hook is async."""
    if inspect.isawaitable(result):
        return await result
    return result
