"""The callers: their keys, concurrent requests and tokens."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer


@dataclass(eq=False)
class Caller:
    """A caller. With several processes, keep callers in a database."""

    name: str
    most_at_once: int = 2
    tokens_left: int = 100_000
    at_once: int = 0


CALLERS = {"key-of-ann": Caller("ann"), "key-of-bob": Caller("bob")}

Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
ApiKey = Annotated[str | None, Depends(APIKeyHeader(name="x-api-key", auto_error=False))]


async def known_caller(bearer: Bearer, api_key: ApiKey) -> Caller:
    """Return the caller with this key. Answer 401 for an unknown or missing key."""
    # OpenAI's clients send a bearer token, Anthropic's the other header.
    sent = (bearer.credentials if bearer else api_key or "").encode()
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
