"""A line of the standard `logging` for each exchange, with its record as `extra` fields."""

import logging
from dataclasses import fields

from ..errors import describe_exception
from ..records import ExchangeRecord, Observer

LOGGER = "asgi_upstream.exchanges"

_FIELDS = tuple(field.name for field in fields(ExchangeRecord) if field.name != "exception")


def log_observer(logger: logging.Logger | str = LOGGER) -> Observer:
    """An observer that logs each exchange: a failed one as WARNING, any other as INFO.

        client_lifespan(observers=[log_observer()])

    The line's `extra` fields are those of `ExchangeRecord`, under their names, with `error` in
    place of `exception`: its type and text, or None.

    Arguments:
        logger: where to, by itself or by its name.
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
