"""Few values for a label, whatever callers send: each new one is a time series for good."""

OTHER = "_OTHER"
"""Stands for all values that are not told apart, as in OpenTelemetry's conventions."""

MAX_HOSTS = 100

_METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)


def bounded_method(method: str) -> str:
    """The method, if it is one of RFC 9110 9 or RFC 5789: a caller may send any."""
    return method if method in _METHODS else OTHER


class BoundedLabels(dict[str, str]):
    """Of all values those that came first, as they are; any other is `OTHER`.

    For hosts: few of one API, but as many as callers like where they choose the upstream.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __missing__(self, value: str) -> str:
        if len(self) >= self._most:
            return OTHER
        self[value] = value
        return value
