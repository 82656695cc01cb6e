"""What the author puts on the client or the call, beside the headers and query of the caller."""

import pytest
from starlette.exceptions import HTTPException

from asgi_upstream import (
    forward_request,
)
from tests.support.flavor import httpx
from tests.support.forwarding import client_of, request_of, target_of, values

pytestmark = pytest.mark.virtual_time


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/a", b"/a?key=secret"),
        ("/a?b=1", b"/a?b=1&key=secret"),
        ("/a?key=spoofed&b=1&key=again", b"/a?b=1&key=secret"),
        ("/a?k%65y=spoofed", b"/a?key=secret"),
        ("/a?key", b"/a?key=secret"),
        ("/a?KEY=1&keys=2&b=%zz+", b"/a?KEY=1&keys=2&b=%zz+&key=secret"),
    ],
)
def test_params_of_the_client_are_sent_and_win(path: str, target: bytes) -> None:
    client = client_of(params={"key": "secret"})
    outgoing = forward_request(client, request_of(path))
    assert target_of(outgoing) == target
    assert outgoing.url.params.get_list("key") == ["secret"]


def test_params_of_the_client_win_by_names_that_need_encoding() -> None:
    client = client_of(params={"clé d": "secret"})
    for name in ("cl%C3%A9+d", "cl%c3%a9%20d"):
        outgoing = forward_request(client, request_of(f"/?{name}=spoofed&b=1"))
        assert target_of(outgoing) == b"/?b=1&cl%C3%A9+d=secret"


def test_client_params_keep_the_bytes_of_the_callers_query() -> None:
    outgoing = forward_request(client_of(params={"k": "v"}), request_of("/?a=1&&b=2&"))
    assert target_of(outgoing).startswith(b"/?a=1&&b=2&")


def test_client_headers_win_over_repeated_headers_and_twins() -> None:
    client = client_of(headers={"X-Api-Key": "secret", "User-Agent": "gateway/1"})
    caller = [
        (b"x-api-key", b"spoofed"),
        (b"x_api_key", b"spoofed"),
        (b"x-api_key", b"spoofed"),
        (b"user-agent", b"curl"),
        (b"x-api-key", b"again"),
        (b"x-api-keys", b"kept"),
    ]
    outgoing = forward_request(client, request_of(headers=caller))
    assert values(outgoing, b"x-api-key") == [b"secret"]
    assert values(outgoing, b"user-agent") == [b"gateway/1"]
    assert values(outgoing, b"x-api-keys") == [b"kept"]
    assert not any(b"_" in name for name, _ in outgoing.headers.raw)
    assert outgoing.headers.raw[0] == (b"host", b"up.example")
    assert not values(outgoing, b"accept-encoding")  # httpx adds it to every client


def test_a_header_of_the_clients_with_an_underscore_wins_too() -> None:
    client = client_of(headers={"api_key": "secret"})
    caller = [(b"api_key", b"spoofed"), (b"api-key", b"spoofed"), (b"x", b"1")]
    outgoing = forward_request(client, request_of(headers=caller))
    assert [v for n, v in outgoing.headers.raw if n.replace(b"_", b"-") == b"api-key"] == [
        b"secret"
    ]


def test_repeated_headers_of_the_clients_are_all_sent() -> None:
    client = client_of(headers=[("x-one", "1"), ("x-one", "2")])
    outgoing = forward_request(client, request_of(headers=[(b"x-one", b"3")]))
    assert values(outgoing, b"x-one") == [b"1", b"2"]


def test_a_host_of_the_clients_wins_over_the_upstreams_name() -> None:
    client = client_of(headers={"Host": "inner.example"})
    assert values(forward_request(client, request_of()), b"host") == [b"inner.example"]


def test_what_httpx_adds_by_itself_is_not_sent() -> None:
    outgoing = forward_request(client_of(), request_of())
    assert sorted(name for name, _ in outgoing.headers.raw) == [
        b"host",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    ]


def test_what_httpx_would_add_is_the_callers_where_it_sent_it() -> None:
    caller = [(b"user-agent", b"curl"), (b"accept", b"a"), (b"accept-encoding", b"br")]
    outgoing = forward_request(client_of(), request_of(headers=caller))
    for name, value in caller:
        assert values(outgoing, name) == [value]


def test_cookies_of_the_client_join_the_callers_and_win() -> None:
    client = client_of(cookies={"session": "own"})
    outgoing = forward_request(
        client, request_of(headers=[(b"cookie", b"a=1; session=spoofed"), (b"cookie", b"b=2")])
    )
    assert values(outgoing, b"cookie") == [b"a=1; b=2; session=own"]


def test_timeouts_of_the_client_apply() -> None:
    client = client_of(timeout=httpx.Timeout(3, connect=1))
    assert forward_request(client, request_of()).extensions["timeout"] == {
        "connect": 1,
        "read": 3,
        "write": 3,
        "pool": 3,
    }


def test_headers_as_a_mapping_set_replace_and_with_none_remove() -> None:
    client = client_of(headers={"x-key": "own", "x-other": "own"})
    caller = [(b"x-one", b"1"), (b"x-one", b"2"), (b"cookie", b"a=1"), (b"x-two", b"3")]
    outgoing = forward_request(
        client,
        request_of(headers=caller),
        headers={"X-ONE": "set", "Cookie": None, "x-key": None, "x-new": "caf\xe9", "x-none": None},
    )
    assert values(outgoing, b"x-one") == [b"set"]
    assert values(outgoing, b"cookie") == []
    assert values(outgoing, b"x-key") == []
    assert values(outgoing, b"x-other") == [b"own"]
    assert values(outgoing, b"x-new") == [b"caf\xe9"]
    assert values(outgoing, b"x-two") == [b"3"]


def test_headers_may_remove_what_this_server_says_of_the_caller() -> None:
    outgoing = forward_request(client_of(), request_of(), headers={"x-forwarded-for": None})
    assert not values(outgoing, b"x-forwarded-for")


def test_headers_function_gets_and_returns_the_list_to_send() -> None:
    seen: list[tuple[bytes, bytes]] = []

    def change(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        seen.extend(fields)
        return [*(field for field in fields if field[0] != b"x-one"), (b"X-New", b"1")]

    client = client_of(headers={"x-key": "own"})
    request = request_of(headers=[(b"x-one", b"1"), (b"x-two", b"2")])
    outgoing = forward_request(client, request, headers=change)
    assert (b"host", b"up.example") in seen
    assert (b"x-key", b"own") in seen
    assert (b"x-forwarded-for", b"127.0.0.1") in seen
    assert not values(outgoing, b"x-one")
    assert values(outgoing, b"x-two") == [b"2"]
    assert values(outgoing, b"x-new") == [b"1"]


@pytest.mark.parametrize("name", ["", "x y", "x:", "x\r\nx-admin"])
def test_header_of_the_endpoint_with_an_invalid_name_is_a_400(name: str) -> None:
    raw = [(name.encode(), b"1")]
    for headers in ({name: "1"}, lambda _: raw):
        with pytest.raises(HTTPException, match="Malformed header") as caught:
            forward_request(client_of(), request_of(), headers=headers)
        assert caught.value.status_code == 400


@pytest.mark.parametrize("value", ["a\r\nx-admin: 1", "a\n", "a\0"])
def test_a_line_break_that_an_author_puts_in_a_header_is_refused(value: str) -> None:
    # The value may be a caller's, from a decoded path or a JSON body.
    with pytest.raises((ValueError, HTTPException)):
        forward_request(client_of(), request_of(), headers={"x-name": value})


def test_trust_forwarded_appends_to_what_the_proxy_said() -> None:
    request = request_of(headers=[(b"x-forwarded-for", b"203.0.113.1"), (b"x-real-ip", b"y")])
    trusted = forward_request(client_of(), request, trust_forwarded_headers=True)
    assert values(trusted, b"x-forwarded-for") == [b"203.0.113.1, 127.0.0.1"]
    assert values(trusted, b"x-real-ip") == [b"y"]
    untrusted = forward_request(client_of(), request)
    assert values(untrusted, b"x-forwarded-for") == [b"127.0.0.1"]
    assert values(untrusted, b"x-real-ip") == []
