"""Has a mock or a tracer replaced a method of httpx or httpcore?

pytest-httpx, respx, OpenTelemetry and Elastic APM replace methods of these classes. This package
has shortcuts that bypass such methods. They are taken only while the methods are the originals.
"""

import inspect
import types
from typing import Any


class MethodGuard:
    """Remembers the original methods of classes.

    A replacement is recognised by its file, because it may have been installed before this package
    was imported.

    Arguments:
        methods: Each class with the name of a method.
    """

    __slots__ = ("_originals",)

    def __init__(self, *methods: tuple[type[Any], str]) -> None:
        self._originals = [(cls, name, _find_original(cls, name)) for cls, name in methods]

    def is_intact(self) -> bool:
        """Whether all methods are the original ones."""
        for cls, name, original in self._originals:  # noqa: SIM110  `all()` takes three times as long
            if getattr(cls, name, None) is not original:
                return False
        return True


def _find_original(cls: type[Any], name: str) -> object:
    """Return the method, or an object that equals no method if it was replaced already."""
    method = getattr(cls, name, None)
    # `no_leaks` may have wrapped `__init__`, so unwrap it.
    file = inspect.unwrap(cls.__init__).__code__.co_filename
    if isinstance(method, types.FunctionType) and method.__code__.co_filename == file:
        return method
    return object()
