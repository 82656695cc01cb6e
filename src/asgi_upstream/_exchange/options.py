"""What an endpoint asks for, and what an exchange needs of those that it asks."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import httpx
from starlette.responses import Response

from .._headers import RawHeaders
from .._httpx.flavors import HTTPXModule, ResponseT
from ..records import Observer

BodyTransform = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
ResponseHook = Callable[[ResponseT], Response | Awaitable[Response | None] | None]
StreamErrorHook = Callable[[Exception], bytes]


class SupportsSend(Protocol):
    """All that an exchange needs of a client."""

    async def send(
        self, request: httpx.Request, *, stream: bool, **options: bool
    ) -> httpx.Response: ...


class ResponseHead(Protocol):
    """Status and headers of a response."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> RawHeaders: ...
    @property
    def version(self) -> bytes: ...
    @property
    def reason(self) -> bytes: ...


class RawResponse(Protocol):
    """A response that was never made an `httpx.Response`; it ends with `keep` or `finish`."""

    @property
    def head(self) -> ResponseHead: ...
    @property
    def request_count(self) -> int: ...
    def read_nowait(self) -> bytes | None: ...
    async def read(self) -> bytes: ...
    def release(self) -> bool: ...
    async def aclose(self) -> None: ...


SendRaw = Callable[[httpx.Request], Awaitable[RawResponse] | None]


@dataclass(slots=True)
class ExchangeOptions:
    """What the endpoint asked for."""

    client: SupportsSend
    request: httpx.Request
    library: HTTPXModule  # of both
    decode: bool
    transform: BodyTransform | None
    on_response: ResponseHook[httpx.Response] | None
    deadline: float | None
    on_stream_error: StreamErrorHook | None
    observers: Sequence[Observer]
    heartbeat: float | None = None  # seconds
    max_bytes: int | None = None  # read the body, up to so many bytes, before anything is sent

    @property
    def modifies_body(self) -> bool:
        """Whether bytes are added, as they can be only to a body that is not compressed."""
        return self.transform is not None or self.on_stream_error is not None

    @property
    def decodes_body(self) -> bool:
        """Whether the exchange may have to decode the upstream's body."""
        return (
            self.decode
            or self.modifies_body
            or self.heartbeat is not None
            or (self.on_response is not None and self.max_bytes is not None)
        )
