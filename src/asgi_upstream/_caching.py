"""A cache of bounded size for values that requests and responses repeat."""

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(dict[K, V]):
    """A dict that starts again when it is full.

    Callers and upstreams choose the keys, so there can be any number of them.
    """

    def __init__(self, max_entries: int) -> None:
        super().__init__()
        self._max_entries = max_entries

    def keep(self, key: K, value: V) -> None:
        """Add an entry."""
        if len(self) >= self._max_entries:
            self.clear()
        self[key] = value
