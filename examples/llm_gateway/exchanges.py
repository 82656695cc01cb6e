"""The exchanges of each caller, completed by the library's records."""

import itertools
import time
from collections import deque
from dataclasses import dataclass, field

from asgi_upstream import ExchangeRecord

from .usage import Usage


@dataclass(eq=False)
class Listed:
    """One exchange. It is live until it has a record."""

    number: int
    caller: str
    model: str
    usage: Usage
    began: float = field(default_factory=time.time)
    record: ExchangeRecord | None = None

    def told(self) -> dict[str, object]:
        """Return what the caller may see: no host and no exception text."""
        record = self.record
        return {
            "number": self.number,
            "model": self.model,
            "began": self.began,
            "tokens": self.usage.completion_tokens,
            "duration": record.duration if record else time.time() - self.began,
            "time_to_first_byte": record.time_to_first_byte if record else None,
            "status": record.status if record else None,
            "outcome": record.outcome if record else None,
            "failed": record.outcome.is_failure if record else False,
        }


class Exchanges:
    """The latest exchanges of all callers."""

    def __init__(self, most: int = 1000) -> None:
        self._listed: deque[Listed] = deque(maxlen=most)
        self._numbers = itertools.count(1)

    def begin(self, caller: str, model: str, usage: Usage) -> Listed:
        """Add a live exchange."""
        listed = Listed(next(self._numbers), caller, model, usage)
        self._listed.append(listed)
        return listed

    def of(self, caller: str, most: int = 20) -> list[dict[str, object]]:
        """Return a caller's exchanges, newest first."""
        own = (listed.told() for listed in reversed(self._listed) if listed.caller == caller)
        return list(itertools.islice(own, most))
