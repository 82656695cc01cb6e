"""Recognises and maps the exceptions of httpx, httpx2 and their httpcore by class name."""

from typing import Any, TypeGuard, TypeVar

import httpx

from .flavors import MODULE_NAMES, get_module_name, small_cache
from .interfaces import HTTPXModule

E = TypeVar("E", bound=BaseException)

# The exceptions of each httpcore have the same names as those of its httpx.
_MODULES_WITH_EXCEPTIONS = MODULE_NAMES | {"httpcore", "httpcore2"}


def is_httpx_error(exc: object, cls: type[E]) -> TypeGuard[E]:
    """Whether an exception is of the class `cls` of httpx, or of httpx2's class of that name."""
    return isinstance(exc, cls) or issubclass(_find_httpx_class(type(exc)), cls)


@small_cache
def _find_httpx_class(cls: type[Any]) -> type[Any]:
    """Return the httpx class with the name of `cls` or of a base. Otherwise return `cls`."""
    for base in cls.__mro__:
        if get_module_name(base) is not None:
            same_name = getattr(httpx, base.__name__, None)
            if isinstance(same_name, type):
                return same_name
    return cls


@small_cache
def map_httpcore_error(cls: type[Exception], library: HTTPXModule) -> type[Exception] | None:
    """Return the library's class for an exception of its httpcore, or None if it is another."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in _MODULES_WITH_EXCEPTIONS:
            mapped: type[Exception] | None = getattr(library, base.__name__, None)
            return mapped
    return None
