"""Tells httpx from httpx2, which an app may use instead.

The package is written for httpx. It asks this module for the library of a client or request. httpx2
is never imported here. If an app passes an object of httpx2, it has imported httpx2 itself.
"""

import inspect
import sys
import types
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx

from .interfaces import HTTPXModule

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")

MODULE_NAMES: frozenset[str] = frozenset(("httpx", "httpx2"))


def small_cache(function: F) -> F:
    """Cache the results of a function. The size is bounded, because apps may create classes."""
    return cast(F, lru_cache(64)(function))


def get_module_name(cls: type[Any]) -> str | None:
    """Return "httpx" or "httpx2" if the class itself is defined there."""
    name: str = cls.__module__.partition(".")[0]
    return name if name in MODULE_NAMES else None


@small_cache
def _find_library(cls: type[Any]) -> HTTPXModule | None:
    name = next(filter(None, map(get_module_name, cls.__mro__)), None)
    return None if name is None else cast(HTTPXModule, sys.modules[name])


@small_cache
def get_library(cls: type[Any]) -> HTTPXModule:
    """Return the library of a class or of its bases. The default is httpx."""
    return _find_library(cls) or httpx


@small_cache
def match_library(client: type[Any], request: type[Any]) -> HTTPXModule:
    """Return the library of a request and of the client that will send it.

    Raises:
        TypeError: If they are of different libraries.
    """
    client_library, request_library = _find_library(client), _find_library(request)
    if client_library and request_library and client_library is not request_library:
        raise TypeError(
            f"got an {client_library.__name__} client and an {request_library.__name__} request; "
            f"build the request with client.build_request('GET', url)"
        )
    return request_library or client_library or httpx


@small_cache
def subclass_for(cls: type[T], base: type[object]) -> type[T]:
    """Return the class `cls`, derived from `base`, which is a class of httpx or httpx2."""
    return cast(type[T], types.new_class(cls.__name__, (cls, base)))


# The bases of classes that `subclass_for` completes.
if TYPE_CHECKING:
    RequestBase = httpx.Request
    ByteStreamBase = httpx.AsyncByteStream
else:
    RequestBase = ByteStreamBase = object


def describe_type(value: object) -> str:
    """Return the type of an argument as an error message names it."""
    if inspect.iscoroutine(value):
        return "an un-awaited coroutine"
    cls = type(value)
    return "None" if value is None else f"{cls.__module__.partition('.')[0]}.{cls.__name__}"
