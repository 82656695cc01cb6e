"""The steps of a scripted response: bytes to send, seconds to wait, faults."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeGuard


@dataclass(frozen=True)
class Fault:
    """A fault at a position of the response."""

    kind: Literal["stall", "end", "reset"]
    after: int | None  # Bytes of the body. None is before the head.
    seconds: float | None = None  # None is forever.


Step: TypeAlias = bytes | float | Fault


def is_data(step: Step) -> TypeGuard[bytes]:
    return isinstance(step, bytes)


def with_faults(steps: Iterable[Step], faults: Iterable[Fault]) -> Iterator[Step]:
    """Return the steps with each fault after its number of bytes, or at the end."""
    waiting = sorted(faults, key=lambda fault: fault.after or 0)
    sent = 0
    for step in steps:
        if not is_data(step):
            yield step
            continue
        while waiting and (waiting[0].after or 0) < sent + len(step):
            before = (waiting[0].after or 0) - sent
            if before:
                yield step[:before]
            step, sent = step[before:], sent + before
            yield waiting.pop(0)
        yield step
        sent += len(step)
    yield from waiting
