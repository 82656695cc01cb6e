"""The package's log, which can fail without changing what a caller gets."""

import logging
from contextlib import suppress
from typing import Any

from ._httpx.flavors import MODULE_NAMES


class _SafeLogger(logging.LoggerAdapter[logging.Logger]):
    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        with suppress(Exception):  # a handler or a filter that raises, or whose disk is full
            super().log(level, msg, *args, stacklevel=2, **kwargs)


logger: _SafeLogger = _SafeLogger(logging.getLogger("asgi_upstream"))
client_loggers: dict[str, _SafeLogger] = {
    name: _SafeLogger(logging.getLogger(name)) for name in MODULE_NAMES
}
