"""The package's loggers."""

import logging
from contextlib import suppress
from typing import Any


class _SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs, and ignores exceptions of the app's filters and handlers.

    `logging` lets exceptions of filters and of some handlers through. In the middle of an exchange
    they would change the response or keep a connection open.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        with suppress(Exception):
            super().log(level, msg, *args, stacklevel=2, **kwargs)


logger: _SafeLogger = _SafeLogger(logging.getLogger("asgi_upstream"))

client_loggers: dict[str, _SafeLogger] = {
    name: _SafeLogger(logging.getLogger(name)) for name in ("httpx", "httpx2")
}
"""The loggers of httpx and httpx2, for what their clients would log."""
