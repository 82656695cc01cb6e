"""The options of an exchange, and the interfaces of the client and the response that it uses."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from starlette.responses import Response

from .._headers import RawHeaders
from .._httpx.interfaces import HTTPXModule, ResponseT
from ..records import Observer

BodyTransform = Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
ResponseHook = Callable[[ResponseT], Response | Awaitable[Response | None] | None]
StreamErrorHook = Callable[[Exception], bytes]


class SupportsSend(Protocol):
    """The part of an httpx client that an exchange uses."""

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
    @property
    def derived(self) -> dict[object, Any] | None:
        """Results of functions of this head, if other exchanges share it."""
        ...


class RawResponse(Protocol):
    """A response that is not an `httpx.Response`. It must be ended with `release` or `aclose`."""

    @property
    def head(self) -> ResponseHead: ...
    @property
    def request_count(self) -> int: ...
    def read_nowait(self) -> bytes | None: ...
    def wait_readable(self) -> Awaitable[None]: ...
    def release(self) -> bool: ...
    async def aclose(self) -> None: ...


SendRaw = Callable[[httpx.Request], Awaitable[RawResponse] | None]


@dataclass(slots=True)
class ExchangeOptions:
    """The arguments of a response."""

    client: SupportsSend
    request: httpx.Request
    library: HTTPXModule  # the library of both
    decode: bool
    transform: BodyTransform | None
    on_response: ResponseHook[httpx.Response] | None
    deadline: float | None
    on_stream_error: StreamErrorHook | None
    observers: Sequence[Observer]
    heartbeat: float | None = None  # seconds
    max_bytes: int | None = None  # if given, the body is buffered

    @property
    def modifies_body(self) -> bool:
        """Whether bytes are changed or added, which only works with a decoded body."""
        return self.transform is not None or self.on_stream_error is not None

    @property
    def decodes_body(self) -> bool:
        """Whether the exchange may have to decode the upstream's body."""
        return (
            self.decode
            or self.transform is not None
            or self.on_stream_error is not None
            or self.heartbeat is not None
            or (self.on_response is not None and self.max_bytes is not None)
        )
