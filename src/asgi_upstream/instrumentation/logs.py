"""Logs each exchange with the standard library's `logging`."""

import logging
from dataclasses import fields

from ..errors import describe_exception
from ..records import ExchangeRecord, Observer

LOGGER_NAME = "asgi_upstream.exchanges"

_FIELDS = tuple(field.name for field in fields(ExchangeRecord) if field.name != "exception")


def log_observer(logger: logging.Logger | str = LOGGER_NAME) -> Observer:
    """Return an observer that logs failed exchanges as WARNING and all others as INFO.

        client_lifespan(observers=[log_observer()])

    The log record has the fields of `ExchangeRecord` as `extra` fields. `exception` is replaced by
    `error`: the exception's class and text, or None.

    Arguments:
        logger: The logger or its name. Default: "asgi_upstream.exchanges".

    Returns:
        A function for `client_lifespan(observers=[...])`.
    """
    log = logging.getLogger(logger) if isinstance(logger, str) else logger

    def observe(record: ExchangeRecord) -> None:
        level = logging.WARNING if record.outcome.is_failure else logging.INFO
        if not log.isEnabledFor(level):
            return
        extra: dict[str, object] = {name: getattr(record, name) for name in _FIELDS}
        extra["outcome"] = record.outcome.value
        extra["error"] = record.exception and describe_exception(record.exception)
        log.log(
            level,
            "%s %s %s: %s after %.3f s",
            record.method,
            record.host,
            record.status or "-",
            record.outcome,
            record.duration,
            extra=extra,
        )

    return observe
