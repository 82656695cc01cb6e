"""Failures of an upstream as HTTP errors: statuses, details, mapping, and the log line."""

import asyncio
import errno
import logging
import pickle
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import h2.exceptions
import httpx2
import pytest
from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException

from asgi_upstream import (
    PoolExhausted,
    UpstreamBodyTooLarge,
    UpstreamConnectError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    upstream_errors,
)
from tests.support.flavor import AsyncioTransport, httpx
from tests.support.logs import FailingHandler
from tests.support.tls import make_tls_contexts

ALL = [
    UpstreamError,
    UpstreamConnectError,
    UpstreamProtocolError,
    UpstreamTimeout,
    PoolExhausted,
    UpstreamBodyTooLarge,
]
REQUEST = httpx.Request("GET", "http://secret.example:8443/private/path?token=1")
SECRETS = ("secret", "example", "8443", "http://", "/private", "token", "Traceback", "httpx")

MAPPING: dict[type[httpx.RequestError], type[UpstreamError]] = {
    httpx.RequestError: UpstreamProtocolError,
    httpx.TransportError: UpstreamProtocolError,
    httpx.TimeoutException: UpstreamTimeout,
    httpx.ConnectTimeout: UpstreamTimeout,
    httpx.ReadTimeout: UpstreamTimeout,
    httpx.WriteTimeout: UpstreamTimeout,
    httpx.PoolTimeout: PoolExhausted,
    httpx.NetworkError: UpstreamProtocolError,
    httpx.ConnectError: UpstreamConnectError,
    httpx.ReadError: UpstreamProtocolError,
    httpx.WriteError: UpstreamProtocolError,
    httpx.CloseError: UpstreamProtocolError,
    httpx.ProxyError: UpstreamConnectError,
    httpx.UnsupportedProtocol: UpstreamProtocolError,
    httpx.ProtocolError: UpstreamProtocolError,
    httpx.LocalProtocolError: UpstreamProtocolError,
    httpx.RemoteProtocolError: UpstreamProtocolError,
    httpx.DecodingError: UpstreamProtocolError,
    httpx.TooManyRedirects: UpstreamProtocolError,
}


def all_below(cls: type[httpx.RequestError]) -> Iterator[type[httpx.RequestError]]:
    yield cls
    for sub in cls.__subclasses__():
        if sub.__module__.partition(".")[0] == httpx.__name__:
            yield from all_below(sub)


def raised_as(exc: Exception) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught, upstream_errors():
        raise exc
    return caught.value


# --- the classes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "status"),
    [
        (UpstreamError, 502),
        (UpstreamConnectError, 502),
        (UpstreamProtocolError, 502),
        (UpstreamBodyTooLarge, 502),
        (PoolExhausted, 503),
        (UpstreamTimeout, 504),
    ],
)
def test_each_error_has_its_status_on_class_and_object(
    cls: type[UpstreamError], status: int
) -> None:
    assert cls.status_code == status
    assert cls().status_code == status


@pytest.mark.parametrize("cls", ALL)
def test_every_error_is_an_http_exception_of_one_family(cls: type[UpstreamError]) -> None:
    assert issubclass(cls, UpstreamError)
    assert issubclass(cls, HTTPException)


def test_every_error_says_something_else_to_the_caller() -> None:
    details = [cls().detail for cls in ALL]
    assert all(details)
    assert len(set(details)) == len(ALL)


def test_only_an_exhausted_pool_says_when_to_try_again() -> None:
    headers = {cls: dict(cls().headers or {}) for cls in ALL}
    assert int(headers.pop(PoolExhausted)["retry-after"]) > 0
    assert all(other == {} for other in headers.values())


@pytest.mark.parametrize("cls", ALL)
def test_an_error_of_ones_own_may_say_more(cls: type[UpstreamError]) -> None:
    error = cls("own words", headers={"x-own": "1"})
    assert error.detail == "own words"
    assert error.headers == {"x-own": "1"}
    assert error.status_code == cls.status_code


@pytest.mark.parametrize("cls", ALL)
def test_an_error_survives_pickling(cls: type[UpstreamError]) -> None:
    for error in (cls(), cls("own words", headers={"x-own": "1"})):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is cls
        assert again.status_code == error.status_code
        assert again.detail == error.detail
        assert again.headers == error.headers


def test_responses_appear_in_openapi_of_app_router_and_route() -> None:
    app = FastAPI(responses=UpstreamError.responses)
    router = APIRouter(prefix="/router", responses=UpstreamError.responses)

    @app.get("/app")
    async def in_app() -> None: ...

    @router.get("/route", responses={**UpstreamTimeout.responses, 404: {"description": "Gone"}})
    async def in_router() -> None: ...

    app.include_router(router)
    paths = app.openapi()["paths"]
    for path in ("/app", "/router/route"):
        documented = paths[path]["get"]["responses"]
        for cls in (UpstreamError, PoolExhausted, UpstreamTimeout):
            response = documented[str(cls.status_code)]
            assert response["description"]
            schema = response["content"]["application/json"]["schema"]
            assert schema["properties"].keys() == {"detail"}
        assert documented["503"]["headers"].keys() == {"Retry-After"}
    assert paths["/router/route"]["get"]["responses"]["404"]["description"] == "Gone"


def test_responses_have_the_statuses_of_all_errors() -> None:
    assert {cls.status_code for cls in ALL} == set(UpstreamError.responses)


# --- the mapping ---------------------------------------------------------------------------


def test_the_table_of_this_test_names_every_exception_of_httpx() -> None:
    known: set[type[Exception]] = set(MAPPING)
    if httpx.__name__ == "httpx2":
        known |= {httpx2.SSEError}  # which only a reader of events raises
    assert set(all_below(httpx.RequestError)) == known


@pytest.mark.parametrize(("theirs", "ours"), MAPPING.items(), ids=lambda cls: cls.__name__)
def test_every_exception_of_httpx_has_its_error(
    theirs: type[httpx.RequestError], ours: type[UpstreamError]
) -> None:
    exc = theirs("http://secret.example:8443/private refused", request=REQUEST)
    error = raised_as(exc)
    assert type(error) is ours
    assert error.__cause__ is exc


@pytest.mark.parametrize("theirs", MAPPING, ids=lambda cls: cls.__name__)
def test_the_caller_is_told_nothing_of_where_the_upstream_is(
    theirs: type[httpx.RequestError],
) -> None:
    error = raised_as(theirs("http://secret.example:8443/private refused", request=REQUEST))
    told = f"{error.detail} {error.headers}"
    assert not [secret for secret in SECRETS if secret in told]


def test_raise_for_status_becomes_an_upstream_error() -> None:
    with pytest.raises(UpstreamError) as caught, upstream_errors():
        httpx.Response(500, request=REQUEST).raise_for_status()
    assert type(caught.value) is UpstreamError
    assert caught.value.status_code == 502
    assert isinstance(caught.value.__cause__, httpx.HTTPStatusError)
    assert "secret" not in caught.value.detail


def test_subclass_of_an_httpx_exception_maps_as_its_parent() -> None:
    class OwnConnectTimeout(httpx.ConnectTimeout):
        pass

    assert type(raised_as(OwnConnectTimeout("x"))) is UpstreamTimeout


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("x"),
        HTTPException(404),
        UpstreamTimeout("own words"),
        httpx.StreamConsumed(),
        httpx.InvalidURL("x"),
        OSError("x"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_what_is_not_a_failure_of_httpx_passes_unchanged(exc: Exception) -> None:
    with pytest.raises(type(exc)) as caught, upstream_errors():
        raise exc
    assert caught.value is exc
    assert exc.__cause__ is None


def test_without_a_failure_nothing_happens() -> None:
    with upstream_errors():
        done = True
    assert done


# --- as a decorator ------------------------------------------------------------------------


@pytest.mark.anyio
async def test_it_decorates_an_async_function() -> None:
    @upstream_errors()
    async def endpoint(number: int, *, fails: bool = False) -> int:
        """Words of its own."""
        if fails:
            raise httpx.ReadTimeout("x", request=REQUEST)
        return number

    assert await endpoint(3) == 3
    assert endpoint.__name__ == "endpoint"
    assert endpoint.__doc__ == "Words of its own."
    for _ in range(2):
        with pytest.raises(UpstreamTimeout):
            await endpoint(3, fails=True)


def test_it_decorates_a_plain_function() -> None:
    @upstream_errors()
    def endpoint(number: int, *, fails: bool = False) -> int:
        if fails:
            raise httpx.PoolTimeout("x", request=REQUEST)
        return number

    assert endpoint(3) == 3
    assert endpoint.__name__ == "endpoint"
    with pytest.raises(PoolExhausted):
        endpoint(3, fails=True)


@pytest.mark.anyio
async def test_an_app_answers_without_a_handler_of_its_own() -> None:
    app = FastAPI()

    @app.get("/async/{item}")
    @upstream_errors()
    async def is_async(item: int) -> int:
        raise httpx.PoolTimeout("http://secret.example:8443", request=REQUEST)

    @app.get("/plain/{item}")
    @upstream_errors()
    def is_plain(item: int) -> int:
        raise httpx.ConnectError("http://secret.example:8443", request=REQUEST)

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://app"
    ) as client:
        busy = await client.get("/async/1")
        assert busy.status_code == 503
        assert busy.headers["retry-after"] == "1"
        assert busy.json() == {"detail": PoolExhausted.detail}
        down = await client.get("/plain/1")
        assert down.status_code == 502
        assert down.json() == {"detail": UpstreamConnectError.detail}
        assert (await client.get("/plain/word")).status_code == 422


# --- the log line --------------------------------------------------------------------------


def test_a_failure_is_logged_once_with_its_class_and_host(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        raised_as(httpx.ConnectError("refused", request=REQUEST))
    (record,) = caplog.records
    assert record.name == "asgi_upstream"
    assert record.levelno == logging.WARNING
    assert "ConnectError" in record.getMessage()
    assert "secret.example" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.exc_info is None


def test_a_failure_without_a_request_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    raised_as(httpx.ConnectError("refused"))
    (record,) = caplog.records
    assert record.getMessage() == "upstream (unknown) failed: ConnectError: refused"


def test_a_failure_without_a_text_is_logged_by_its_class(caplog: pytest.LogCaptureFixture) -> None:
    raised_as(httpx.ReadTimeout("", request=REQUEST))
    (record,) = caplog.records
    assert record.getMessage() == "upstream secret.example:8443 failed: ReadTimeout (GET)"


@pytest.mark.parametrize("quote", ["'", '"'])
def test_no_value_of_a_field_is_logged(quote: str, caplog: pytest.LogCaptureFixture) -> None:
    said = f"Illegal header value b{quote}Bearer secret\\n{quote}"  # as h11 says it
    raised_as(httpx.LocalProtocolError(said, request=REQUEST))
    (record,) = caplog.records
    assert record.getMessage() == (
        "upstream secret.example:8443 failed: LocalProtocolError: Illegal header value (GET)"
    )


def test_a_failure_within_two_of_them_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UpstreamTimeout), upstream_errors(), upstream_errors():
        raise httpx.ReadTimeout("x", request=REQUEST)
    assert len(caplog.records) == 1


def test_what_is_not_of_httpx_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match="x"), upstream_errors():
        raise ValueError("x")
    assert caplog.records == []


def raise_in(exc: Exception, *calls: tuple[str, str]) -> None:
    """Raise an exception from nested calls of functions, each in the module named with it."""

    inner: Any = None
    for index, (module, function) in enumerate(reversed(calls)):
        namespace: dict[str, Any] = {"__name__": module, "inner": inner, "exc": exc}
        body = "inner()" if index else "raise exc"
        exec(f"def {function}():\n    {body}", namespace)
        inner = namespace[function]
    inner()


IN_CONNECT = (("httpcore._async.connection", "_connect"), ("anyio._core._sockets", "connect_tcp"))
IN_READ = (("httpcore._async.http11", "_receive_event"), ("anyio.streams.tls", "receive"))
IN_APP = (("httpcore._async.http11", "_send_request_body"), ("app", "upload"), ("ssl", "read"))


def tls_alert(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:2580)")
    error.reason = reason
    return error


UNMAPPED = [
    OSError(errno.EMFILE, "Too many open files"),
    ConnectionResetError("reset"),
    tls_alert("DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
    ValueError("negative file descriptor"),
    AttributeError("no attribute 'getpeername'", name="getpeername", obj=None),
    anyio.BrokenResourceError(),
    anyio.EndOfStream(),
    h2.exceptions.FrameTooLargeError("too large"),
]


@pytest.mark.parametrize("exc", UNMAPPED, ids=lambda exc: type(exc).__name__)
def test_unmapped_error_of_transport_is_an_upstream_error(exc: Exception) -> None:
    with pytest.raises(UpstreamError) as caught, upstream_errors():
        raise_in(exc.with_traceback(None), *IN_CONNECT)
    assert type(caught.value) is UpstreamConnectError
    assert caught.value.__cause__ is exc
    with pytest.raises(UpstreamError) as caught, upstream_errors():
        raise_in(exc.with_traceback(None), *IN_READ)
    assert type(caught.value) is UpstreamProtocolError


@pytest.mark.parametrize("exc", UNMAPPED, ids=lambda exc: type(exc).__name__)
def test_same_error_of_the_app_passes_unchanged(exc: Exception) -> None:
    """Raised in the block itself, or by a body of the app that the transport reads."""
    for calls in ((("app", "endpoint"),), IN_APP):
        with pytest.raises(type(exc)) as caught, upstream_errors():
            raise_in(exc.with_traceback(None), *calls)
        assert caught.value is exc


def test_programming_error_in_transport_passes_unchanged() -> None:
    with pytest.raises(RuntimeError, match="Event loop is closed"), upstream_errors():
        raise_in(RuntimeError("Event loop is closed"), *IN_READ)
    with pytest.raises(AttributeError), upstream_errors():
        raise_in(AttributeError("no attribute 'reqeust'", name="reqeust", obj=None), *IN_READ)


@pytest.mark.parametrize(
    "reason", ["TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_BAD_CERTIFICATE"]
)
def test_tls_alert_is_a_connect_error_even_in_a_read(reason: str) -> None:
    with pytest.raises(UpstreamConnectError), upstream_errors():
        raise_in(tls_alert(reason), *IN_READ)
    with pytest.raises(UpstreamConnectError), upstream_errors():
        raise httpx.ReadError("read failed") from tls_alert(reason)


@contextmanager
def refusing_client_certificates(tls: ssl.SSLContext) -> Iterator[int]:
    """A server that ends the handshake with an alert, as asyncio's server does not. Its port."""

    def serve() -> None:
        accepted, _ = listener.accept()
        wrapped = tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        with suppress(ssl.SSLError):
            wrapped.do_handshake()
        with socket.socket(fileno=wrapped.detach()) as connection:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # a close with unread bytes would discard the alert
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "kind", ["httpx", "httpx2", pytest.param("AsyncioTransport", marks=pytest.mark.asyncio_only)]
)
async def test_refused_client_certificate_is_a_connect_error(kind: str) -> None:
    library: Any = httpx2 if kind == "httpx2" else httpx
    tls, trust = make_tls_contexts("127.0.0.1")
    tls.verify_mode = ssl.CERT_REQUIRED
    make = AsyncioTransport if kind == "AsyncioTransport" else library.AsyncHTTPTransport
    transport = make(verify=trust)
    async with library.AsyncClient(transport=transport) as client:
        with (
            refusing_client_certificates(tls) as port,
            pytest.raises(UpstreamConnectError),
            upstream_errors(),
        ):
            await client.get(f"https://127.0.0.1:{port}/")


def test_a_handler_of_the_log_that_raises_changes_nothing() -> None:
    handler = FailingHandler()
    logging.getLogger("asgi_upstream").addHandler(handler)
    try:
        with pytest.raises(UpstreamConnectError), upstream_errors():
            raise httpx.ConnectError("refused")
    finally:
        logging.getLogger("asgi_upstream").removeHandler(handler)


# --- groups --------------------------------------------------------------------------------


def group(*members: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("unhandled errors in a TaskGroup", members)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([httpx.ConnectError("refused")], UpstreamConnectError),
        ([httpx2.ReadTimeout("slow"), httpx2.ConnectError("refused")], UpstreamConnectError),
        ([httpx.PoolTimeout("full"), httpx.ReadTimeout("slow")], UpstreamTimeout),
        ([PoolExhausted(), group(group(httpx.RemoteProtocolError("x")))], UpstreamProtocolError),
        ([UpstreamBodyTooLarge(), UpstreamTimeout()], UpstreamBodyTooLarge),
        ([UpstreamError(), PoolExhausted()], PoolExhausted),
        ([httpx.ReadTimeout("slow"), HTTPException(404), ValueError("x")], UpstreamTimeout),
    ],
)
def test_group_becomes_its_most_severe_upstream_error(
    members: list[Exception], expected: type[UpstreamError]
) -> None:
    raised = group(*members)
    with pytest.raises(UpstreamError) as caught, upstream_errors():
        raise raised
    assert type(caught.value) is expected
    assert caught.value.__cause__ is raised
    assert caught.value not in raised.exceptions


@pytest.mark.parametrize("member", [ValueError("x"), HTTPException(404), httpx.InvalidURL("x")])
def test_group_without_upstream_failure_passes_unchanged(member: Exception) -> None:
    raised = group(member, group(KeyError("y")))
    with pytest.raises(ExceptionGroup) as caught, upstream_errors():
        raise raised
    assert caught.value is raised
    assert raised.__cause__ is None


def test_group_with_cancellation_passes_unchanged() -> None:
    raised = BaseExceptionGroup("x", [asyncio.CancelledError(), httpx.ReadTimeout("slow")])
    with pytest.raises(BaseExceptionGroup) as caught, upstream_errors():
        raise raised
    assert caught.value is raised


def test_error_from_group_keeps_detail_headers_and_note() -> None:
    original = UpstreamTimeout("own words", {"x-own": "1"})
    original.add_note("the deadline of 3 s passed")
    with pytest.raises(UpstreamTimeout) as caught, upstream_errors():
        raise group(original)
    assert (caught.value.detail, caught.value.headers) == ("own words", {"x-own": "1"})
    assert caught.value.__notes__ == original.__notes__


def test_group_logs_each_failure_once(caplog: pytest.LogCaptureFixture) -> None:
    def run() -> None:
        with upstream_errors():
            try:
                with upstream_errors():
                    raise httpx.ConnectError("refused", request=REQUEST)
            except UpstreamError as logged_already:
                raise group(
                    logged_already, httpx.ReadTimeout("slow", request=REQUEST), ValueError("bug")
                ) from None

    with pytest.raises(UpstreamConnectError):
        run()
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in lines] == ["WARNING", "WARNING", "ERROR"]
    assert "refused" in lines[0][1]
    assert "slow" in lines[1][1]
    assert caplog.records[2].exc_info is not None
    assert isinstance(caplog.records[2].exc_info[1], ValueError)


@pytest.mark.anyio
async def test_task_group_of_calls_is_a_502_in_an_app(loop_name: str) -> None:
    """The idiom for merging two upstreams: with the block around the group, and as a decorator."""
    app = FastAPI()
    client = httpx.AsyncClient(base_url="http://127.0.0.1:1")

    @app.get("/anyio")
    async def with_anyio() -> None:
        with upstream_errors():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.get, "/a")
                tasks.start_soon(client.get, "/b")

    @app.get("/asyncio")
    @upstream_errors()
    async def with_asyncio() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(client.get("/a"))
            tasks.create_task(client.get("/b"))

    transport = httpx.ASGITransport(app)
    async with client, httpx.AsyncClient(transport=transport, base_url="http://app") as caller:
        for path in ["/anyio"] + ["/asyncio"] * (loop_name == "asyncio"):
            answer = await caller.get(path)
            assert (answer.status_code, answer.json()) == (
                502,
                {"detail": UpstreamConnectError.detail},
            )
