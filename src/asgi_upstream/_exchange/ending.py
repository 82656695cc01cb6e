"""How an exchange ended."""

from dataclasses import dataclass

from starlette.responses import Response

from ..records import Outcome

# Python 3.11 looks up the members of an enum slowly.
_BEFORE_HEADERS = Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS
_MID_BODY = Outcome.CALLER_DISCONNECTED_MID_BODY


@dataclass(slots=True)  # not frozen: that would take four times as long to create
class Ending:
    """How the upstream's part of an exchange ended.

    The response to the caller, the log line and the record are derived from it.

    Attributes:
        outcome: The outcome of the exchange.
        error: The error if the exchange failed, mapped to an `UpstreamError` if possible.
        final_chunk: The chunk that completes the body.
        replacement: The response that `on_response` returned.
    """

    outcome: Outcome
    error: Exception | None = None
    final_chunk: bytes = b""
    replacement: Response | None = None

    @property
    def is_disconnect(self) -> bool:
        return self.outcome is _BEFORE_HEADERS or self.outcome is _MID_BODY
