"""The callers: their keys, concurrent requests and tokens."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer


@dataclass(eq=False)
class Caller:
    """A caller. With several processes, keep callers in a database."""

    name: str
    most_at_once: int = 2
    tokens_left: int = 100_000
    at_once: int = 0


CALLERS = {"key-of-ann": Caller("ann"), "key-of-bob": Caller("bob")}

Key = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


async def known_caller(key: Key) -> Caller:
    """Return the caller with this key. Answer 401 for an unknown or missing key."""
    sent = key.credentials.encode() if key else b""
    for known, caller in CALLERS.items():
        if secrets.compare_digest(known.encode(), sent):
            return caller
    raise HTTPException(401, "unknown key", {"www-authenticate": "Bearer"})


KnownCaller = Annotated[Caller, Depends(known_caller)]


async def within_limits(caller: KnownCaller) -> AsyncIterator[Caller]:
    """Count the exchange until it has ended. Answer 429 above the caller's limits."""
    if caller.tokens_left <= 0:
        raise HTTPException(429, "no tokens left")
    if caller.at_once >= caller.most_at_once:
        raise HTTPException(429, "too many concurrent requests", {"retry-after": "1"})
    caller.at_once += 1
    try:
        yield caller
    finally:
        caller.at_once -= 1


LimitedCaller = Annotated[Caller, Depends(within_limits)]
