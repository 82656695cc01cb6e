"""Which outcomes are somebody's failure."""

from ..records import Outcome

_UNREMARKABLE = frozenset(
    (
        Outcome.COMPLETED,
        Outcome.REPLACED,
        Outcome.CALLER_LEFT_BEFORE_HEADERS,
        Outcome.CALLER_LEFT_MID_BODY,
        Outcome.CANCELLED,
    )
)


def is_failure(outcome: Outcome) -> bool:
    """Whether the upstream or the app failed; callers may leave, and servers stop."""
    return outcome not in _UNREMARKABLE
