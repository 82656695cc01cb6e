"""What an endpoint asks for, and what an exchange needs of those that it asks."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import httpx
from starlette.responses import Response

from .headers import RawHeaders
from .libraries import Library, ResponseT
from .records import Observer

Transform = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
OnResponse = Callable[[ResponseT], Response | Awaitable[Response | None] | None]
ErrorFrame = Callable[[Exception], bytes]


class SendsRequests(Protocol):
    """All that an exchange needs of a client."""

    async def send(
        self, request: httpx.Request, *, stream: bool, **options: bool
    ) -> httpx.Response: ...


class Head(Protocol):
    """Status and fields of a response."""

    @property
    def status(self) -> int: ...
    @property
    def fields(self) -> RawHeaders: ...
    @property
    def version(self) -> bytes: ...
    @property
    def reason(self) -> bytes: ...


class Relayed(Protocol):
    """A response that was never made an `httpx.Response`; it ends with `keep` or `finish`."""

    @property
    def head(self) -> Head: ...
    @property
    def exchanges(self) -> int: ...
    def take(self) -> bytes | None: ...
    async def read(self) -> bytes: ...
    def keep(self) -> bool: ...
    async def finish(self) -> None: ...


Relay = Callable[[httpx.Request], Awaitable[Relayed] | None]


@dataclass(slots=True)
class Terms:
    """What the endpoint asked for."""

    client: SendsRequests
    request: httpx.Request
    library: Library  # of both
    decode: bool
    transform: Transform | None
    on_response: OnResponse[httpx.Response] | None
    deadline: float | None
    error_frame: ErrorFrame | None
    observers: Sequence[Observer]
    max_bytes: int | None = None  # read the body, up to so many bytes, before anything is sent

    @property
    def changes_body(self) -> bool:
        """Whether bytes are added, as they can be only to a body that is not compressed."""
        return self.transform is not None or self.error_frame is not None
