"""What the upstream does for the compositions, besides what it does anyway."""

import time
from collections import defaultdict
from dataclasses import dataclass
from email.utils import formatdate

from asgi_upstream.testing import ReceivedRequest, ScriptedResponse
from tests.support.upstream import BEHAVIOURS

OK = [("x-upstream", "yes")]

arrivals: defaultdict[str, list[float]] = defaultdict(list)
"""When requests came, by the `key` of their query."""


def flaky(request: ReceivedRequest) -> ScriptedResponse:
    """Fails `times` times as `how` says, a status or "reset", and answers then."""
    query = request.query
    times = arrivals[query["key"]]
    times.append(time.monotonic())
    how = query.get("how", "503")
    if len(times) > int(query.get("times", "1000000")):
        return ScriptedResponse().content(b"well", headers=OK)
    if how == "reset":
        return ScriptedResponse().reset()
    after = [("retry-after", query["after"])] if "after" in query else []
    return ScriptedResponse().content(b"no", status=int(how), headers=after)


def kept(request: ReceivedRequest) -> ScriptedResponse:
    """The n-th answer to a `key`, for whom the request names; `cache`, `vary`, ... as asked for.

    With `renews`, a 304 sets a cookie for whom the request names, and is fresh.

    Its body has `parts` parts and breaks off after `broken` of them; the first time, with `stall`,
    it stops after one, and does not end.
    """
    times, query, given = arrivals[request.query["key"]], request.query, request.headers
    times.append(time.monotonic())
    names = ("authorization", "cookie", "x-api-key", "accept-language")
    for_whom = ",".join(given[name] for name in names if name in given)
    fields = [*OK, *([("cache-control", query["cache"])] if "cache" in query else [])]
    for name in ("vary", "etag", "set-cookie", "last-modified", "access-control-allow-origin"):
        fields += [(name, query[name])] if name in query else []
    if "undated" not in query:
        made = time.time() - int(query.get("age", 0))
        fields += [("date", formatdate(made, usegmt=True))]
    if "etag" in query and given.get("if-none-match") == query["etag"]:
        if "renews" in query:
            fields = [field for field in fields if field[0] != "date"]
            fields += [("set-cookie", for_whom)]
        return ScriptedResponse().status(304, headers=fields)
    part = f"{len(times)} for {for_whom or 'anybody'}\n".encode()
    parts = [part, *[bytes([n % 251]) * 50_000 for n in range(1, int(query.get("parts", "1")))]]
    if len(parts) == 1 and "broken" not in query:
        return ScriptedResponse().content(part, headers=fields)
    answer = ScriptedResponse().chunks(*parts, headers=fields)
    if "broken" in query:
        answer.reset(after=sum(map(len, parts[: int(query["broken"])])))
    return answer.stall(after=len(part)) if "stall" in query and len(times) == 1 else answer


_TWO_EVENTS = ": hello\n\nevent: line\nid: 7\ndata: grün\ndata: rot\n\ndata: zwei\r\n\r\n".encode()


def two_events(*then: float) -> ScriptedResponse:
    """Cut at each byte."""
    cut = [bytes([byte]) for byte in _TWO_EVENTS]
    return ScriptedResponse().chunks(
        *cut, *then, headers=[*OK, ("content-type", "text/event-stream")]
    )


@dataclass
class Tokens:
    """What the token endpoint has given out; the last one is valid, unless it was revoked."""

    issued: int = 0
    lifetime: int = 3600
    refusal: bytes = b""  # the whole answer, in place of a token
    valid: str = ""


tokens = Tokens()


def token(request: ReceivedRequest) -> ScriptedResponse:
    if tokens.refusal:
        return ScriptedResponse().raw(tokens.refusal)
    tokens.issued += 1
    tokens.valid = f"token-{tokens.issued}"
    given = {"access_token": tokens.valid, "token_type": "Bearer", "expires_in": tokens.lifetime}
    return ScriptedResponse().json(given).stall(0.2)  # so that many wait for it


def guarded(request: ReceivedRequest) -> ScriptedResponse:
    """401 for who does not give the token that is valid; `late` seconds after it was looked at."""
    known = request.headers.get("authorization") == f"Bearer {tokens.valid}"
    answer = ScriptedResponse().content(b"ok", status=200 if known else 401)
    return answer.stall(float(request.query["late"])) if "late" in request.query else answer


BEHAVIOURS |= {
    "flaky": flaky,
    "kept": kept,
    "token": token,
    "guarded": guarded,
    # Two events, and then nothing more.
    "quiet": two_events().stall(after=len(_TWO_EVENTS)),
    # Two events, and then the connection breaks.
    "dying": two_events(0.05).reset(after=len(_TWO_EVENTS)),
    # Events without end, as fast as they are taken.
    "torrent": ScriptedResponse().events("d" * 10_000, forever=True, headers=OK),
}
