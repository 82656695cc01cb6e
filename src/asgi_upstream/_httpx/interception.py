"""Has a mock or a tracer replaced a method of httpx or httpcore?

pytest-httpx, respx, OpenTelemetry and Elastic APM replace methods of these classes. This package
has shortcuts that bypass such methods. They are taken only while the methods are the originals.
"""

import inspect
import types
from typing import Any


class _Unknown:
    """Stands for an original method that is not known, and equals no method.

    Arguments:
        replacement: What was there instead.
    """

    def __init__(self, replacement: object) -> None:
        self.replacement = replacement


class MethodGuard:
    """Remembers the original methods of classes.

    A replacement is recognised by its file, because it may have been installed before the guard was
    made. When it is removed again, the guard finds the original.

    Arguments:
        methods: Each class with the name of a method.
    """

    __slots__ = ("_originals",)

    def __init__(self, *methods: tuple[type[Any], str]) -> None:
        self._originals = [(cls, name, _find_original(cls, name)) for cls, name in methods]

    def is_intact(self) -> bool:
        """Whether all methods are the original ones."""
        for cls, name, original in self._originals:
            if (method := getattr(cls, name, None)) is not original:
                is_restored = isinstance(original, _Unknown) and method is not original.replacement
                return is_restored and self._find_restored()
        return True

    def _find_restored(self) -> bool:
        """Look again for the methods that were replaced when the guard was made."""
        self._originals = [
            (cls, name, _find_original(cls, name) if isinstance(original, _Unknown) else original)
            for cls, name, original in self._originals
        ]
        return all(getattr(cls, name, None) is known for cls, name, known in self._originals)


def _find_original(cls: type[Any], name: str) -> object:
    """Return the method, or what stands for it if it is replaced."""
    method = getattr(cls, name, None)
    # `no_leaks` may have wrapped `__init__`, so unwrap it.
    file = inspect.unwrap(cls.__init__).__code__.co_filename
    if isinstance(method, types.FunctionType) and method.__code__.co_filename == file:
        return method
    return _Unknown(method)
