"""httpx, and httpx2, which apps may use instead: the one place that knows that there are two.

Everything else is written for httpx, and asks here for what is of its own class in each of them.
httpx2 is never imported here: who gives an object of its classes has done that.
"""

import inspect
import sys
import types
from collections.abc import Callable, MutableMapping
from functools import lru_cache
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, TypeVar, cast

import httpx

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class AnyRequest(Protocol):
    """An `httpx.Request`, or an `httpx2.Request`."""

    @property
    def method(self) -> str: ...
    @property
    def extensions(self) -> MutableMapping[str, Any]: ...
    async def aread(self) -> bytes: ...


class AnyResponse(Protocol):
    """An `httpx.Response`, or an `httpx2.Response`."""

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
    """An `httpx.AsyncClient`, or an `httpx2.AsyncClient`, with its requests and responses."""

    async def send(self, request: RequestT_contra, *, stream: bool = ...) -> ResponseT_co: ...
    async def aclose(self) -> None: ...


class SupportsBuildRequest(Protocol[RequestT_co, URLT_contra]):
    """The same, as it makes requests."""

    def build_request(self, method: str, url: URLT_contra | str) -> RequestT_co: ...
    async def aclose(self) -> None: ...


class HTTPXModule(Protocol):
    """What is needed of a library; the module `httpx` is one, and so is `httpx2`."""

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


MODULE_NAMES: frozenset[str] = frozenset(("httpx", "httpx2"))
_EXCEPTION_MODULES = MODULE_NAMES | {
    "httpcore",
    "httpcore2",
}  # whose exceptions have the same names


def small_cache(function: F) -> F:
    """Remember what it returned; not for ever, for apps may make classes, and upstreams names."""
    return cast(F, lru_cache(64)(function))


def _defining_module(kind: type[Any]) -> str | None:
    """The library that a class itself is of."""
    name: str = kind.__module__.partition(".")[0]
    return name if name in MODULE_NAMES else None


@small_cache
def _find_library(kind: type[Any]) -> HTTPXModule | None:
    name = next(filter(None, map(_defining_module, kind.__mro__)), None)
    return None if name is None else cast(HTTPXModule, sys.modules[name])


@small_cache
def get_library(kind: type[Any]) -> HTTPXModule:
    """The library of a class or of its bases; httpx for what is of neither."""
    return _find_library(kind) or httpx


@small_cache
def match_library(client: type[Any], request: type[Any]) -> HTTPXModule:
    """The library of a request, and of the client that is to send it.

    Raises:
        TypeError: they are of different ones.
    """
    ours, theirs = _find_library(client), _find_library(request)
    if ours is not theirs and ours is not None and theirs is not None:
        raise TypeError(
            f"got an {ours.__name__} client and an {theirs.__name__} request; build the request "
            f"with client.build_request('GET', url)"
        )
    return theirs or ours or httpx


@small_cache
def subclass_for(kind: type[T], base: type[object]) -> type[T]:
    """The class `kind`, derived from `base`, which is of one of the libraries."""
    return cast(type[T], types.new_class(kind.__name__, (kind, base)))


# The bases of those until then.
if TYPE_CHECKING:
    RequestBase = httpx.Request
    ByteStreamBase = httpx.AsyncByteStream
else:
    RequestBase = ByteStreamBase = object


def describe_type(value: object) -> str:
    """What an argument is, as an error names it."""
    if inspect.iscoroutine(value):
        return "an un-awaited coroutine"
    kind = type(value)
    return "None" if value is None else f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def is_httpx_error(exc: object, kind: type[E]) -> TypeGuard[E]:
    """Whether an exception is one of httpx's class `kind`, or of httpx2's class of that name."""
    return isinstance(exc, kind) or issubclass(_httpx_class(type(exc)), kind)


@small_cache
def _httpx_class(kind: type[Any]) -> type[Any]:
    for base in kind.__mro__:
        if _defining_module(base) and isinstance(
            alike := getattr(httpx, base.__name__, None), type
        ):
            return alike
    return kind


@small_cache
def map_httpcore_error(kind: type[Exception], library: HTTPXModule) -> type[Exception] | None:
    """The library's class for an exception of its httpcore; None for one of another package."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in _EXCEPTION_MODULES:
            own: type[Exception] | None = getattr(library, base.__name__, None)
            return own
    return None
