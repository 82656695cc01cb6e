"""The status and the headers that the caller gets."""

from types import SimpleNamespace
from typing import Any

import pytest

from asgi_upstream import UpstreamProtocolError
from asgi_upstream._exchange.response_head import (
    add_stream_headers,
    build_plain_head,
    build_response_head,
    has_no_content,
    validate_status,
)

LENGTH = (b"content-length", b"5")
PLAIN = (b"content-type", b"text/plain")
NOSNIFF = (b"x-content-type-options", b"nosniff")
UNBUFFERED = (b"x-accel-buffering", b"no")


@pytest.mark.parametrize("status", [0, 100, 101, 103, 199, 600, 999])
def test_status_that_is_not_final_is_the_upstreams_error(status: int) -> None:
    with pytest.raises(UpstreamProtocolError, match=f"status {status}"):
        validate_status(status)
    with pytest.raises(UpstreamProtocolError):
        build_response_head(status, [], request_method="GET", caller_method="GET")


@pytest.mark.parametrize("status", [200, 204, 299, 404, 599])
def test_final_status_is_accepted(status: int) -> None:
    validate_status(status)


@pytest.mark.parametrize(
    ("method", "status", "expected"),
    [
        ("GET", 200, False),
        ("GET", 204, True),
        ("GET", 205, True),
        ("GET", 304, True),
        ("HEAD", 200, True),
        ("CONNECT", 404, False),
    ],
)
def test_content_is_absent_by_method_or_status(method: str, status: int, expected: bool) -> None:
    assert has_no_content(method, status) is expected


@pytest.mark.parametrize(
    ("request_method", "caller_method", "status", "override", "expected"),
    [
        ("GET", "GET", 200, None, (200, [LENGTH, PLAIN])),
        ("GET", "GET", 200, 201, (201, [LENGTH, PLAIN])),
        ("GET", "GET", 204, None, (204, [PLAIN])),
        ("GET", "GET", 205, None, (205, [PLAIN])),
        ("GET", "GET", 200, 204, (204, [PLAIN])),
        ("GET", "GET", 304, 200, (200, [PLAIN])),
        ("HEAD", "HEAD", 200, None, (200, [LENGTH, PLAIN])),
        ("HEAD", "GET", 200, None, (200, [PLAIN])),
        ("GET", "HEAD", 200, None, (200, [LENGTH, PLAIN])),
    ],
)
def test_length_is_sent_only_where_it_is_true(
    request_method: str,
    caller_method: str,
    status: int,
    override: int | None,
    expected: tuple[int, list[tuple[bytes, bytes]]],
) -> None:
    head = build_response_head(
        status,
        [(b"Content-Length", b"5"), (b"Content-Type", b"text/plain"), (b"Connection", b"close")],
        request_method=request_method,
        caller_method=caller_method,
        status_override=override,
    )
    assert head == expected


def test_head_of_modified_body_has_weak_etag_and_no_length() -> None:
    _, headers = build_response_head(
        200,
        [LENGTH, (b"etag", b'"a"'), (b"content-encoding", b"gzip"), PLAIN],
        request_method="GET",
        caller_method="GET",
        body_modified=True,
    )
    assert headers == [(b"etag", b'W/"a"'), PLAIN]


@pytest.mark.parametrize(("method", "kept"), [("GET", False), ("POST", False), ("HEAD", True)])
def test_content_length_of_a_304_is_for_head_only(method: str, kept: bool) -> None:
    """uvicorn with httptools fails on it, and would log a traceback (RFC 9110 8.6)."""
    raw = [(b"content-length", b"5"), (b"etag", b'"a"')]
    _, headers = build_response_head(304, raw, request_method=method, caller_method=method)
    assert ((b"content-length", b"5") in headers) is kept
    _, headers = build_response_head(
        200, raw, request_method=method, caller_method=method, status_override=304
    )
    assert ((b"content-length", b"5") in headers) is kept


@pytest.mark.parametrize("value", [b"text/plain", b"Text/Plain ; charset=utf-8", b"text/plain;x"])
def test_plain_text_stream_gets_nosniff(value: bytes) -> None:
    headers = [(b"content-type", value)]
    assert add_stream_headers(headers, forwarded=False) == [*headers, NOSNIFF]


@pytest.mark.parametrize("value", [b"text/plain", b"text/plain; charset=utf-8"])
def test_plain_text_of_forwarded_request_is_left_alone(value: bytes) -> None:
    headers = [(b"content-type", value)]
    assert add_stream_headers(headers, forwarded=True) == headers


@pytest.mark.parametrize("forwarded", [False, True])
@pytest.mark.parametrize("value", [b"text/plainer", b"text/html", b"", b"text/event-streams"])
def test_other_media_types_get_no_header(value: bytes, forwarded: bool) -> None:
    headers = [(b"content-type", value)]
    assert add_stream_headers(headers, forwarded=forwarded) == headers
    assert add_stream_headers([], forwarded=forwarded) == []


@pytest.mark.parametrize("forwarded", [False, True])
@pytest.mark.parametrize("value", [b"text/event-stream", b"Text/Event-Stream;charset=utf-8"])
def test_event_stream_gets_x_accel_buffering(value: bytes, forwarded: bool) -> None:
    headers = [(b"content-type", value)]
    assert add_stream_headers(headers, forwarded=forwarded) == [*headers, UNBUFFERED]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-type", b"text/plain"), (b"x-content-type-options", b"own")],
        [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"yes")],
    ],
)
def test_stream_header_of_the_upstream_is_kept(headers: list[tuple[bytes, bytes]]) -> None:
    assert add_stream_headers(headers, forwarded=False) == headers


def make_head(status: int = 200, derived: dict[object, Any] | None = None) -> Any:
    headers = [LENGTH, PLAIN, (b"connection", b"close")]
    return SimpleNamespace(status=status, headers=headers, derived=derived)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, ([LENGTH, PLAIN], 5)), (204, ([PLAIN], 0)), (205, ([PLAIN], 0)), (304, ([PLAIN], 0))],
)
def test_plain_head_has_headers_and_length(status: int, expected: object, shared: bool) -> None:
    head = make_head(status, {} if shared else None)
    assert build_plain_head(head, forwarded=True) == expected


def test_plain_head_without_a_length_has_none() -> None:
    head = make_head()
    head.headers = [PLAIN]
    assert build_plain_head(head, forwarded=False) == ([PLAIN, NOSNIFF], None)


def test_shared_head_is_derived_once_for_each_kind_of_request() -> None:
    head = make_head(derived={})
    first, _ = build_plain_head(head, forwarded=False)
    first.append((b"x", b"from middleware"))
    head.headers = []  # not read again
    assert build_plain_head(head, forwarded=False) == ([LENGTH, PLAIN, NOSNIFF], 5)
    assert build_plain_head(head, forwarded=True) == ([], None)


def test_head_that_is_not_shared_is_derived_each_time() -> None:
    head = make_head()
    assert build_plain_head(head, forwarded=True) == ([LENGTH, PLAIN], 5)
    head.headers = []
    assert build_plain_head(head, forwarded=True) == ([], None)


def test_plain_head_refuses_a_status_that_is_not_final() -> None:
    with pytest.raises(UpstreamProtocolError):
        build_plain_head(make_head(101), forwarded=False)
