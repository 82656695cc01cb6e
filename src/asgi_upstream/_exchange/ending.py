"""How an exchange ended."""

from dataclasses import dataclass

from ..records import Outcome

# Python 3.11 looks up the members of an enum slowly.
_BEFORE_HEADERS = Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS
_MID_BODY = Outcome.CALLER_DISCONNECTED_MID_BODY


@dataclass(slots=True)  # not frozen: that would take four times as long to create
class Ending:
    """How the upstream's part of an exchange ended.

    The response to the caller, the log line and the record are derived from it. It does not change.

    Attributes:
        error: The error if the exchange failed, mapped to an `UpstreamError` if possible.
    """

    outcome: Outcome
    error: Exception | None = None

    @property
    def is_disconnect(self) -> bool:
        return self.outcome is _BEFORE_HEADERS or self.outcome is _MID_BODY


CANCELLED = Ending(Outcome.CANCELLED)
COMPLETED = Ending(Outcome.COMPLETED)
REPLACED = Ending(Outcome.REPLACED)
