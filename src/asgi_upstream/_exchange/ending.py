"""How an exchange ended."""

from dataclasses import dataclass

from starlette.responses import Response

from ..records import Outcome


@dataclass(frozen=True, slots=True)
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
        return self.outcome in (
            Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS,
            Outcome.CALLER_DISCONNECTED_MID_BODY,
        )
