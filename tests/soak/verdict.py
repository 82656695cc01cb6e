"""Whether what a caller saw is what the plan must come to."""

import hashlib

from .app import FRAME
from .callers import Seen
from .plan import BEFORE, MID_BODY, Plan

MALFORMED = "malformed, or with bytes behind the response"


def outcomes(plan: Plan) -> set[str]:
    """All that is right: mostly one thing, and more where one end may overtake the other."""
    right = {"whole"}
    if plan.fate in ("refuse", "early"):
        right.add("reset while it sent")  # by a server that closes under an upload, RFC 9112 9.6
    elif plan.fate in ("stall_before", "stall_upload"):
        right = {"504"}
    elif plan.fate in BEFORE:
        right = {"502"}
    elif plan.fate in MID_BODY:
        late = plan.fate == "stall_mid"
        cut = {"streamed": "cut", "forwarded": "cut", "framed": "framed"}
        right = {cut.get(plan.way, "504" if late else "502")}
        if late:
            right.add("504")  # where also the head came too late
        elif plan.fate == "reset_mid":
            right.add("502")  # a reset takes with it what was not read yet
    if plan.line == "faulty":
        right |= {"502", "504", "framed" if plan.way == "framed" else "cut"}
    return right


def outcome(plan: Plan, seen: Seen) -> str:
    """What it came to, in the words of `outcomes`; other words are for what is never right."""
    if seen.hung:
        return "hung"
    if seen.stray:
        return MALFORMED
    if seen.reset and plan.fate in ("refuse", "early"):
        return "reset while it sent"
    if not seen.status:
        return "nothing"
    if seen.status != (413 if plan.fate == "refuse" else 200):
        return str(seen.status) if seen.complete else f"{seen.status}, cut"
    if seen.fields.get(b"x-number") != b"%d" % plan.number:
        return "the answer to another"
    if plan.method == "HEAD":
        # A frame may still follow, so that a framed response never says how long it is.
        known = plan.framing == "length" and plan.way != "framed"
        length = b"%d" % plan.size if known else None
        return "whole" if seen.fields.get(b"content-length") == length else "of another length"
    if seen.digest == _digest(plan.body[: seen.length]) and seen.length <= plan.size:
        if not seen.complete:
            return "cut"
        return "whole" if seen.length == plan.size else "short, and said to be whole"
    before = bytes(plan.body[: max(0, seen.length - len(FRAME))])
    framed = seen.complete and seen.digest == _digest(before + FRAME)
    return "framed" if framed else "other bytes"


def wrong(plan: Plan, seen: Seen) -> str | None:
    """What is wrong with it; None where it is right."""
    if plan.goes_away:  # it has no verdict on what it did not wait for
        return MALFORMED if seen.stray else None
    was = outcome(plan, seen)
    return None if was in outcomes(plan) else was


def wrong_upload(plan: Plan, seen: Seen, taken: str | None) -> str | None:
    """The same of the digest of what the upstream took as a whole upload."""
    if taken is not None and plan.goes_away and plan.until == "upload":
        return "a torn upload reached the upstream as a whole one"
    if taken is not None and taken != _digest(plan.sent_up):
        return "the upload reached the upstream as other bytes"
    if taken is None and seen.status == 200 and plan.fate == "whole" and plan.upload >= 0:
        return "the upload did not reach the upstream"
    return None


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
