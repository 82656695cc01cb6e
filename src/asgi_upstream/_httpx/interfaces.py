"""The parts of httpx's interface that the package uses, as protocols that httpx2 satisfies too."""

from collections.abc import Callable, MutableMapping
from ssl import SSLContext
from typing import Any, Protocol, TypeVar

import httpx


class AnyRequest(Protocol):
    """An `httpx.Request` or an `httpx2.Request`."""

    @property
    def method(self) -> str: ...
    @property
    def extensions(self) -> MutableMapping[str, Any]: ...
    async def aread(self) -> bytes: ...


class AnyResponse(Protocol):
    """An `httpx.Response` or an `httpx2.Response`."""

    @property
    def status_code(self) -> int: ...
    async def aread(self) -> bytes: ...
    async def aclose(self) -> None: ...


RequestT = TypeVar("RequestT", bound=AnyRequest)
RequestT_contra = TypeVar("RequestT_contra", bound=AnyRequest, contravariant=True)
RequestT_co = TypeVar("RequestT_co", bound=AnyRequest, covariant=True)
ResponseT = TypeVar("ResponseT", bound=AnyResponse)
ResponseT_co = TypeVar("ResponseT_co", bound=AnyResponse, covariant=True)
URLT = TypeVar("URLT")
URLT_contra = TypeVar("URLT_contra", contravariant=True)


class AnyClient(Protocol[RequestT_contra, ResponseT_co]):
    """An `httpx.AsyncClient` or an `httpx2.AsyncClient`, with its requests and responses."""

    async def send(self, request: RequestT_contra, *, stream: bool = ...) -> ResponseT_co: ...
    async def aclose(self) -> None: ...


class SupportsBuildRequest(Protocol[RequestT_co, URLT_contra]):
    """A client that builds requests of its own library."""

    def build_request(self, method: str, url: URLT_contra | str) -> RequestT_co: ...
    async def aclose(self) -> None: ...


class HTTPXModule(Protocol):
    """The names of the module `httpx` or `httpx2` that the package uses."""

    __name__: str

    AsyncByteStream: type[httpx.AsyncByteStream]
    AsyncClient: type[httpx.AsyncClient]
    AsyncHTTPTransport: type[httpx.AsyncHTTPTransport]
    ByteStream: type[httpx.ByteStream]
    Client: type[httpx.Client]
    CloseError: type[httpx.CloseError]
    ConnectError: type[httpx.ConnectError]
    ConnectTimeout: type[httpx.ConnectTimeout]
    DecodingError: type[httpx.DecodingError]
    Headers: type[httpx.Headers]
    InvalidURL: type[httpx.InvalidURL]
    LocalProtocolError: type[httpx.LocalProtocolError]
    MockTransport: type[httpx.MockTransport]
    NetworkError: type[httpx.NetworkError]
    PoolTimeout: type[httpx.PoolTimeout]
    ReadError: type[httpx.ReadError]
    ReadTimeout: type[httpx.ReadTimeout]
    RemoteProtocolError: type[httpx.RemoteProtocolError]
    Request: type[httpx.Request]
    Response: type[httpx.Response]
    ResponseNotRead: type[httpx.ResponseNotRead]
    StreamConsumed: type[httpx.StreamConsumed]
    TimeoutException: type[httpx.TimeoutException]
    UnsupportedProtocol: type[httpx.UnsupportedProtocol]
    URL: type[httpx.URL]
    WriteError: type[httpx.WriteError]
    WriteTimeout: type[httpx.WriteTimeout]

    @property
    def create_ssl_context(self) -> Callable[..., SSLContext]: ...
