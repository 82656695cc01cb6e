"""The request that `forward_request` makes: its URL and Headers only when somebody looks."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request

from .._headers import RawHeaders
from .flavors import ByteStreamBase, HTTPXModule, RequestBase


class ForwardedRequest(RequestBase):
    """A request whose exact target goes with its URL.

    Whoever sets another URL means to send it there. What most exchanges do not look at, and what
    would cost them more than all else here, is made when it is looked at.

    Attributes:
        origin_url: a URL of the same scheme, host and port.
        raw_fields: the header list to send; what `headers.raw` would be.
    """

    def __init__(
        self,
        library: HTTPXModule,
        method: str,
        base: httpx.URL,
        target: bytes,
        fields: RawHeaders,
        stream: httpx.AsyncByteStream,
        timeout: dict[str, float | None],
    ) -> None:
        self.method = method  # as it is: httpx makes it upper case, and methods are case-sensitive
        self.stream = stream
        self.extensions: dict[str, Any] = _Extensions(target=target, timeout=timeout)
        self.origin_url: httpx.URL = base
        self._target = target
        self._fields = fields
        self._library = library
        self._url: httpx.URL | None = None
        self._headers: httpx.Headers | None = None

    @property
    def raw_headers(self) -> RawHeaders:
        return self._fields if self._headers is None else self._headers.raw

    @property
    def url(self) -> httpx.URL:
        if self._url is None:
            try:
                self._url = self.origin_url.copy_with(raw_path=self._target)
            except self._library.InvalidURL:  # longer than httpx prints
                self._url = self.origin_url
        return self._url

    @url.setter
    def url(self, url: httpx.URL) -> None:
        before = self.url
        self._url = self.origin_url = url
        if url != before:
            self.extensions.pop("target", None)
            if self.headers.get("host") == before.netloc.decode("ascii"):
                self.headers["host"] = url.netloc.decode("ascii")

    @property
    def headers(self) -> httpx.Headers:
        if self._headers is None:
            self._headers = self._library.Headers(self._fields)
        return self._headers

    @headers.setter
    def headers(self, headers: httpx.Headers) -> None:
        self._headers = headers


def request_origin(request: httpx.Request) -> httpx.URL:
    """A URL of the scheme, host and port that a request goes to; none is made for it."""
    return request.origin_url if isinstance(request, ForwardedRequest) else request.url


def copy_with_headers(
    request: httpx.Request, headers: RawHeaders, library: HTTPXModule
) -> httpx.Request:
    """Return a request that differs in its headers only. It shares the body stream."""
    copy = object.__new__(type(request))  # copy.copy() would drop the stream and the extensions
    vars(copy).update(vars(request))
    copy.headers = library.Headers(headers)
    return copy


class _Extensions(dict[str, Any]):
    """A copy has no target, for httpx makes it for the request that follows a redirect."""

    def keys(self) -> Any:
        return super().keys() - {"target"}

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


class RequestBodyStream(ByteStreamBase):
    """The body of the caller's request, part by part as it arrives; torn where the caller's is."""

    def __init__(self, library: HTTPXModule, request: HTTPConnection, length: int | None) -> None:
        assert isinstance(request, Request), "only a Request has a body to forward"
        self._library = library
        self._request = request
        self._length = length  # in bytes; None where it is not known

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._length
        try:
            async for chunk in self._request.stream():
                if left is not None:
                    left -= len(chunk)
                    if left < 0:
                        break
                if chunk:
                    yield chunk
        except RuntimeError as exc:  # Starlette's, of a body that is read already
            raise self._library.StreamConsumed from exc
        if left:  # as of an upgrade that uvicorn ignores, with the body
            raise HTTPException(400, "Request body is shorter than its Content-Length")
