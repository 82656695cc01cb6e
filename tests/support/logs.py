"""Handlers of the log for tests."""

import logging


class FailingHandler(logging.Handler):
    """Raises for each record."""

    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("the log cannot be written")
