"""Limits label values, because each new value creates a permanent time series."""

from .._methods import NEVER_FORWARDED, USUAL

OTHER = "_OTHER"
"""Replaces the values above the limit. The name is from OpenTelemetry's conventions."""

MAX_HOSTS = 100

_METHODS = USUAL | NEVER_FORWARDED


def bounded_method(method: str) -> str:
    """Return a standard method as it is and `OTHER` for others (RFC 9110 9, RFC 5789)."""
    return method if method in _METHODS else OTHER


class BoundedLabels(dict[str, str]):
    """Maps the first `max_values` values to themselves and all others to `OTHER`.

    An API has few hosts. An app that lets callers choose the upstream can have any number.
    """

    def __init__(self, max_values: int) -> None:
        super().__init__()
        self._max_values = max_values

    def __missing__(self, value: str) -> str:
        if len(self) >= self._max_values:
            return OTHER
        self[value] = value
        return value
