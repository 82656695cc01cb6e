"""The request that `forward_request` builds. It makes its URL and headers when they are read."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, Protocol, cast

import httpx

from .._headers import RawHeaders
from .._methods import WITH_BODY
from .flavors import RequestBase
from .interfaces import HTTPXModule

MAX_PLAIN_TARGET = 4096
_CHARACTER = rb"[\w.~%:@,=!$&'()*+;-]"
_PLAIN_TARGET = re.compile(rb"(?:/(?![./])%b*)+(?:\?(?:/|%b)*)?" % (_CHARACTER, _CHARACTER))
"""A target that httpx takes as it is. It quotes other characters and removes dot segments."""


class PendingBody(Protocol):
    """A body without framing headers. The first chunk decides how it is framed."""

    async def read_first_chunk(self) -> tuple[bytes, bool]:
        """Return the first chunk, and whether more may follow."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class ForwardedRequest(RequestBase):
    """A request with an exact target beside its URL.

    If somebody sets another URL, the request goes there. Most exchanges read neither the URL nor
    the headers. Both are expensive to make, so they are made on first access.

    Attributes:
        origin_url: A URL with the same scheme, host and port.
        raw_headers: The header list to send. It is what `headers.raw` would be.
        pending_body: The body whose framing is not known yet, or None.
    """

    def __init__(
        self,
        library: HTTPXModule,
        method: str,
        base: httpx.URL,
        target: bytes,
        headers: RawHeaders,
        stream: httpx.AsyncByteStream,
        timeout: dict[str, float | None],
    ) -> None:
        self.method = method  # unchanged: httpx makes it upper case, but methods are case-sensitive
        self.stream = stream
        self.extensions: dict[str, Any] = _Extensions(target=target, timeout=timeout)
        self.origin_url: httpx.URL = base
        self.pending_body: PendingBody | None = None
        self._target = target
        self._raw_headers = headers
        self._library = library
        self._url: httpx.URL | None = None
        self._headers: httpx.Headers | None = None

    @property
    def raw_headers(self) -> RawHeaders:
        return self._raw_headers if self._headers is None else self._headers.raw

    @property
    def url(self) -> httpx.URL:
        if self._url is None:
            try:
                self._url = copy_with_target(self.origin_url, self._target, self._library)
            except self._library.InvalidURL:  # It is longer than httpx accepts.
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
            self._headers = self._library.Headers(self._raw_headers)
        return self._headers

    @headers.setter
    def headers(self, headers: httpx.Headers) -> None:
        self._headers = headers

    async def resolve_body(self) -> None:
        """Read the first chunk of a body without framing headers, and frame it.

        A complete body gets a Content-Length. Otherwise the body is sent in chunks.

        Raises:
            HTTPException: 408 if the caller sends nothing in time.
        """
        body = self.pending_body
        if body is None:
            return
        chunk, more = await body.read_first_chunk()
        self.pending_body = None
        if more:
            self._set_framing("transfer-encoding", "chunked")
            self.stream = cast(httpx.AsyncByteStream, body)
            return
        self.stream = self._library.ByteStream(chunk)
        is_framed = chunk or self.method in WITH_BODY
        self._set_framing("content-length", str(len(chunk)) if is_framed else None)

    def _set_framing(self, name: str, value: str | None) -> None:
        headers = self._library.Headers(self.raw_headers)
        for framing in ("content-length", "transfer-encoding"):
            headers.pop(framing, None)
        if value is not None:
            headers[name] = value
        self.headers = headers


def request_origin(request: httpx.Request) -> httpx.URL:
    """Return a URL with the scheme, host and port of a request, without making a new one."""
    return request.origin_url if isinstance(request, ForwardedRequest) else request.url


def copy_with_target(url: Any, target: bytes, library: HTTPXModule) -> httpx.URL:
    """Return `url.copy_with(raw_path=target)`.

    That takes 5 % of the CPU time of a forwarded request, because httpx 0.28 and httpx2 parse the
    whole URL again. So this replaces the private result of their parser if the target is plain.
    """
    if len(target) <= MAX_PLAIN_TARGET and _PLAIN_TARGET.fullmatch(target):
        copy: Any = library.URL(url)
        path, separator, query = target.decode("ascii").partition("?")
        with suppress(AttributeError, ValueError):  # another version of httpx
            parts = copy._uri_reference
            copy._uri_reference = parts._replace(path=path, query=query if separator else None)
            return cast(httpx.URL, copy)
    return cast(httpx.URL, url.copy_with(raw_path=target))


def copy_with_headers(
    request: httpx.Request, headers: RawHeaders, library: HTTPXModule
) -> httpx.Request:
    """Return a request that differs in its headers only. It shares the body stream."""
    copy = object.__new__(type(request))  # copy.copy() would drop the stream and the extensions
    vars(copy).update(vars(request))
    copy.headers = library.Headers(headers)
    return copy


class _Extensions(dict[str, Any]):
    """Hides the target from copies, because httpx copies the extensions when it follows a redirect.

    Otherwise `client.send(forward_request(...), follow_redirects=True)` would send the old target
    to the new address.
    """

    def keys(self) -> Any:
        return super().keys() - {"target"}

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())
