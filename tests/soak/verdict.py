"""Whether what a caller saw is what the plan must come to."""

import hashlib

from .app import FRAME
from .callers import Seen
from .plan import BEFORE, MID_BODY, Plan

TIMES_OUT = ("stall_before", "stall_upload")


def outcomes(plan: Plan) -> set[str]:
    """All that is right: mostly one thing, and more where one end may overtake the other."""
    right = {"whole"}
    if plan.fate == "refuse":
        right = {"413"}
    elif plan.fate == "early":
        right = {"whole", "cut", "nothing"}  # a server may reset what goes on to be sent
    elif plan.fate in TIMES_OUT:
        right = {"504"}
    elif plan.fate in BEFORE:
        right = {"502"}
    elif plan.fate in MID_BODY:
        late = plan.fate == "stall_mid"
        cut = {"streamed": "cut", "forwarded": "cut", "framed": "framed"}
        right = {cut.get(plan.way, "504" if late else "502")}
        if plan.fate == "reset_mid":
            right.add("502")  # a reset takes what was not read yet with it
        elif late:
            right.add("504")
    if plan.line == "faulty":
        right |= {"502", "504", "framed" if plan.way == "framed" else "cut"}
    return right


def outcome(plan: Plan, seen: Seen) -> str:
    """What it came to, in the words of `outcomes`; anything else is never right."""
    if seen.hung:
        return "hung"
    if seen.stray:
        return "with bytes behind the response, or malformed"
    if not seen.status:
        return "nothing"
    if seen.status != 200:
        return str(seen.status) if seen.complete else f"{seen.status}, cut"
    if seen.fields.get(b"x-number") != b"%d" % plan.number:
        return "the answer to another"
    if plan.method == "HEAD":
        # A frame may still follow, so that a framed response never says how long it is.
        known = plan.framing == "length" and plan.way != "framed"
        length = b"%d" % plan.size if known else None
        return "whole" if seen.fields.get(b"content-length") == length else "of another length"
    body = plan.body[: seen.length]
    if hashlib.sha256(body).hexdigest() == seen.digest and seen.length == len(body):
        whole = seen.length == plan.size
        return "whole" if seen.complete and whole else "complete, and short" if seen.complete else "cut"
    before = plan.body[: seen.length - len(FRAME)]
    framed = hashlib.sha256(bytes(before) + FRAME).hexdigest() == seen.digest
    return "framed" if framed and seen.complete else "other bytes"


def wrong(plan: Plan, seen: Seen) -> str | None:
    """What is wrong with it; None where it is right."""
    if plan.goes_away:  # it has no verdict on what it did not wait for
        return "with bytes behind the response, or malformed" if seen.stray else None
    was = outcome(plan, seen)
    return None if was in outcomes(plan) else was


def wrong_upload(plan: Plan, taken: str | None, *, whole: bool) -> str | None:
    """The same of what the upstream took as a whole upload; `whole` where the caller got a 200."""
    if taken is not None and plan.goes_away and plan.until == "upload":
        return "a torn upload reached the upstream as a whole one"
    if taken is not None and taken != hashlib.sha256(plan.sent_up).hexdigest():
        return "the upload reached the upstream as other bytes"
    if taken is None and whole and plan.upload >= 0 and plan.fate == "whole":
        return "the upload did not reach the upstream"
    return None
