"""The request target, byte for byte and with no way out, and each form of mounting.

All of it on one server, and on every server the tests that depend on the server.
"""

from collections.abc import Iterator

import pytest

from tests.support.server_choice import every_server
from tests.support.servers import Server
from tests.support.wire import Wire, forwarded, head, send, serving

pytest_plugins = ["tests.support.wire_fixtures"]


def refused(server: Server, wire: Wire, target: str, *status: int) -> None:
    answer = send(server, head("GET", target))
    assert answer.status in status, (target, answer.status)
    assert wire.seen == []


# RFC 9112 3.2, RFC 3986 6: the target passes byte for byte.

TARGETS = {
    "root": "/",
    "final slash": "/a/",
    "%2F": "/a%2Fb",
    "%2f": "/a%2fb",
    "final %2F": "/a%2F",
    "%00": "/%00",
    "encoded for nothing": "/%7E%61",
    "not encoded": "/~a",
    "//": "//a//b//",
    "parameters": "/a;b=1;c",
    "+": "/a+b",
    "%20": "/a%20b",
    "colon and at": "/a:b@c",
    "backslash": "/a\\b",
    "quotes": "/'\"",
    "brackets": "/[]|{}",
    "angles": "/^`<>",
    "%zz": "/%zz",
    "%": "/%",
    "%a": "/%a",
    "encoded UTF-8": "/caf%C3%A9",
    "encoded bytes": "/%e9%ff",
    "encoded delimiters": "/%3F%23%25%5B",
    "sub-delims": "/!$&'()*,=-._~",
    "three dots": "/.../a",
    "dots in a name": "/a..b/..a/a..",
    "one dot": "/./a/.",
    "one dot encoded": "/%2e/a",
    "well-known": "/.well-known/x",
    "query": "/a?b=%2F&b=%2f&c=+&&d&=e&f=%zz",
    "several ?": "/a??b?c",
    "quotes in a query": "/a?b=\"'",
    "brackets in a query": "/a?b[]={}|",
    "a URL in a query": "/a?u=http://evil.example/../x",
    "dots in a query": "/a?../../b",
    "%00 in a query": "/a?%00",
    "a line break in a query": "/a?%0d%0aX-Evil:%201",
    "long": "/" + "a" * 7000,
    "long query": "/?" + "a" * 7000,
}
REFUSED = {"granian": {"angles", "quotes in a query"}}  # 400 of the server's own


def pass_or_refuse(server: Server, wire: Wire, what: str) -> None:
    target = TARGETS[what]
    if what in REFUSED.get(server.name, ()):
        refused(server, wire, f"/forward{target}", 400)
    else:
        assert forwarded(server, wire, target=f"/forward{target}").target == target.encode()


@pytest.mark.parametrize("what", TARGETS)
def test_9112_3_2_target_after_the_mount_keeps_its_bytes(
    forwarder: Server, wire: Wire, what: str
) -> None:
    pass_or_refuse(forwarder, wire, what)


@every_server
def test_9112_3_2_each_server_passes_each_target_or_refuses_it(
    forwarder: Server, wire: Wire
) -> None:
    for what in TARGETS:
        wire.reset()
        pass_or_refuse(forwarder, wire, what)


@every_server
@pytest.mark.parametrize("target", ["/caf\xe9", "/a?b=\xe9", "/a\tb", "/a\x7f"])
def test_9112_3_2_a_target_with_bytes_that_none_may_have_is_400(
    forwarder: Server, wire: Wire, target: str
) -> None:
    refused(forwarder, wire, f"/forward{target}", 400)


def test_an_encoded_line_break_in_a_path_never_breaks_a_line(forwarder: Server, wire: Wire) -> None:
    # Starlette's Mount matches no path with a line break in it; a Route does.
    refused(forwarder, wire, "/forward/%0d%0aX-Evil:%201", 404)
    for mount in ("/route", "/by-hand"):
        wire.reset()
        send(forwarder, head("GET", mount + "/%0d%0aX-Evil:%201"))
        for seen in wire.seen:
            assert seen.target == b"/%0d%0aX-Evil:%201"


# RFC 3986 6.2.2, 5.2.4: what an upstream could read as a way out.

ESCAPES = [
    "/..",
    "/../a",
    "/a/../../b",
    "/a/..",
    "/a/../b",
    "/%2e%2e/a",
    "/%2E%2e/a",
    "/%2e./a",
    "/.%2e/a",
    "/a/%2e%2e",
    "/..%2fa",
    "/..%2Fa",
    "/a%2f..%2fb",
    "/a%2f%2e%2e",
    "/%2e%2e%2fa",
    "/..%5ca",
    "/..%5Ca",
    "/..\\a",
    "/a\\..\\b",
    "/%2e%2e%5ca",
    "/..;/a",
    "/..;x=1/a",
    "/%2e%2e;/a",
    "/..%3b/a",
    "/..%00/a",
    "/.%00./a",
    "/..%20/a",
    "/%20../a",
    "/..%09/a",
    "/..+/a",
    "/%252e%252e/a",
    "/%252e%252e%252fa",
    "/..%252fa",
    "/..%255ca",
    "/%25252e%25252e/a",
    "/%%32%65%%32%65/a",
    "/%c0%ae%c0%ae/a",
    "/%e0%80%ae./a",
    "/..%c0%afa",
    "/..%c1%9ca",
    "/%u002e%u002e/a",
    "/..%u002fa",
    "/..%3fa",
    "/..%23a",
    "//../a",
    "/a/..?b",
]


@pytest.mark.parametrize("target", ESCAPES)
def test_3986_6_2_2_a_path_that_may_get_out_is_400_and_not_sent(
    forwarder: Server, wire: Wire, target: str
) -> None:
    refused(forwarder, wire, f"/forward{target}", 400)


@every_server
def test_3986_6_2_2_no_server_lets_a_path_out(forwarder: Server, wire: Wire) -> None:
    for target in ESCAPES:
        refused(forwarder, wire, f"/forward{target}", 400)


@pytest.mark.parametrize("mount", ["/based", "/slashed", "/route", "/by-hand", "/prefixed/v2"])
def test_3986_6_2_2_no_form_of_mounting_lets_a_path_out(
    forwarder: Server, wire: Wire, mount: str
) -> None:
    for target in ESCAPES:
        refused(forwarder, wire, mount + target, 400)


@pytest.mark.parametrize(
    "target",
    ["/../forward/x", "/x/../forward/x", "/%2e%2e/forward/x", "/forward%2f..%2fx", "/forward%2fx"],
)
def test_a_path_that_may_get_out_of_the_mount_itself_is_not_sent(
    forwarder: Server, wire: Wire, target: str
) -> None:
    refused(forwarder, wire, target, 400, 404)


# RFC 9110 7.1, 9112 3.2: nothing that a caller says chooses the upstream.

EVIL = ["//evil", "//evil:1/a", "/@evil", "/:1@evil", "/http://evil", "/http:%2f%2fevil", "/\\evil"]


@pytest.mark.parametrize("target", EVIL)
@pytest.mark.parametrize(("mount", "base"), [("forward", b""), ("based", b"/v1"), ("route", b"")])
def test_9112_3_2_no_path_chooses_another_upstream(
    forwarder: Server, wire: Wire, mount: str, base: bytes, target: str
) -> None:
    seen = forwarded(forwarder, wire, target=f"/{mount}{target}")
    assert seen.target == base + target.encode()
    assert seen.all(b"host") == [wire.address.encode()]


@every_server
def test_9112_3_2_2_an_absolute_form_chooses_no_upstream(forwarder: Server, wire: Wire) -> None:
    answer = send(forwarder, head("GET", "http://evil.example/forward/x?y"))
    # h11 hands the whole on as the path, and no mount matches that.
    assert answer.status == (200 if forwarder.name in ("uvicorn-httptools", "granian") else 404)
    for seen in wire.seen:
        assert (seen.target, seen.all(b"host")) == (b"/x?y", [wire.address.encode()])


@every_server
@pytest.mark.parametrize("host", ["evil.example", "evil:99", "127.0.0.1:1", "[::1]", "a@evil", ""])
def test_9110_7_2_no_host_field_chooses_an_upstream(
    forwarder: Server, wire: Wire, host: str
) -> None:
    answer = send(forwarder, head("GET", "/forward/x", host=host))
    assert answer.status in (200, 400)
    for seen in wire.seen:
        assert seen.all(b"host") == [wire.address.encode()]
        assert seen.all(b"x-forwarded-host") == [host.encode()]


# Each form of mounting.

FORMS = {
    "Mount in FastAPI": ("/forward/a%2Fb?c", b"/a%2Fb?c"),
    "its root": ("/forward/", b"/"),
    "Mount in Mount": ("/outer/inner/a%2Fb", b"/a%2Fb"),
    "Mount in a sub-app": ("/fastapi/api/a%2Fb", b"/a%2Fb"),
    "Mount in a Router": ("/router/api/a%2Fb", b"/a%2Fb"),
    "Route endpoint": ("/route/a%2Fb/?c", b"/a%2Fb/?c"),
    "by hand": ("/by-hand/a%2Fb", b"/a%2Fb"),
    "prefix": ("/prefixed/v2/a%2Fb", b"/a%2Fb"),
    "prefix alone": ("/prefixed/v2", b"/"),
    "base with a path": ("/based/a", b"/v1/a"),
    "base with a path, root": ("/based/", b"/v1/"),
    "base with a path, two slashes": ("/based//a", b"/v1//a"),
    "base with a final slash": ("/slashed/a", b"/v1/a"),
    "base with a final slash, root": ("/slashed/", b"/v1/"),
    "base with a final slash, two": ("/slashed//a", b"/v1//a"),
    "mount to be encoded": ("/caf%C3%A9/a%2Fb", b"/a%2Fb"),
    "in lower case": ("/caf%c3%a9/a", b"/a"),
    "mount encoded for nothing": ("/%66orward/a", b"/a"),
}


@every_server
@pytest.mark.parametrize(("target", "expected"), FORMS.values(), ids=FORMS)
def test_each_form_of_mounting_forwards_what_is_below_it(
    forwarder: Server, wire: Wire, target: str, expected: bytes
) -> None:
    assert forwarded(forwarder, wire, target=target).target == expected


@pytest.mark.parametrize("path", ["/v3/a", "/v22/a", "/", "/v2%2e/a", "/V2/a"])
def test_a_path_outside_the_prefix_is_404_and_not_sent(
    forwarder: Server, wire: Wire, path: str
) -> None:
    refused(forwarder, wire, f"/prefixed{path}", 404)


def test_routers_dependency_decides_which_request_is_forwarded(
    forwarder: Server, wire: Wire
) -> None:
    refused(forwarder, wire, "/guarded/x", 401)
    fields = ["X-Password: sesame", "Content-Length: 5"]
    seen = forwarded(
        forwarder, wire, *fields, method="POST", target="/guarded/a%2Fb?c", body=b"hello"
    )
    assert (seen.line, seen.body) == (b"POST /a%2Fb?c HTTP/1.1", b"hello")


@pytest.fixture(scope="module")
def whole(server_name: str, listening: Wire) -> Iterator[Server]:
    yield from serving(server_name, listening, "whole")


@pytest.fixture(scope="module")
def starlette(server_name: str, listening: Wire) -> Iterator[Server]:
    yield from serving(server_name, listening, "starlette")


ROOTED = {
    "uvicorn-httptools": "--root-path",
    "hypercorn-asyncio": "--root-path",
    "granian": "--url-path-prefix",
}


@pytest.fixture(scope="module")
def rooted(server_name: str, listening: Wire) -> Iterator[Server]:
    yield from serving(server_name, listening, "app", ROOTED[server_name], "/gw")


@pytest.mark.parametrize(
    "target", ["/", "/a%2Fb/?c", "//evil/x", "/@evil", "/%0ax", "/http://evil"]
)
def test_as_the_whole_app_it_forwards_every_path(whole: Server, wire: Wire, target: str) -> None:
    seen = forwarded(whole, wire, target=target)
    assert seen.target == target.encode()
    assert seen.all(b"host") == [wire.address.encode()]


@pytest.mark.parametrize("target", ["@evil/x", "evil/x", ":80/x", "evil.example:80"])
def test_as_the_whole_app_it_refuses_a_target_that_is_no_path(
    whole: Server, wire: Wire, target: str
) -> None:
    if whole.name == "granian" and target == "evil.example:80":  # It passes no path on.
        assert forwarded(whole, wire, target=target).target == b"/"
    else:
        refused(whole, wire, target, 400)


@pytest.mark.parametrize("target", ["http://evil/y", "http://a@evil:80/y", "HTTP://EVIL/y"])
def test_9112_3_2_2_whole_app_takes_the_path_of_absolute_form(
    whole: Server, wire: Wire, target: str
) -> None:
    seen = forwarded(whole, wire, target=target)
    assert (seen.target, seen.all(b"host")) == (b"/y", [wire.address.encode()])


@pytest.mark.parametrize("target", ESCAPES)
def test_3986_6_2_2_as_the_whole_app_it_lets_no_path_out(
    whole: Server, wire: Wire, target: str
) -> None:
    refused(whole, wire, target, 400)


def test_as_the_whole_app_it_answers_405_to_trace(whole: Server, wire: Wire) -> None:
    assert send(whole, head("TRACE", "/x")).status == 405
    assert wire.seen == []


@pytest.mark.parametrize(
    ("target", "expected"),
    [("/sub/a%2Fb/?c", b"/a%2Fb/?c"), ("/a%2Fb/?c", b"/v1/a%2Fb/?c"), ("//a", b"/v1//a")],
    ids=["at a path", "at the root", "at the root, two slashes"],
)
def test_mounted_in_starlette_it_forwards_what_is_below_it(
    starlette: Server, wire: Wire, target: str, expected: bytes
) -> None:
    assert forwarded(starlette, wire, target=target).target == expected


def test_3986_6_2_2_mounted_in_starlette_it_lets_no_path_out(starlette: Server, wire: Wire) -> None:
    for target in ESCAPES:
        refused(starlette, wire, f"/sub{target}", 400)
        refused(starlette, wire, target, 400)


@pytest.mark.servers(*ROOTED, fast=ROOTED)
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/forward/a%2Fb?c", b"/a%2Fb?c"),
        ("/caf%C3%A9/a%2Fb", b"/a%2Fb"),
        ("/based/a", b"/v1/a"),
        ("/prefixed/v2/a", b"/a"),
        ("/route/a%2Fb", b"/a%2Fb"),
    ],
    ids=["Mount", "mount to be encoded", "base with a path", "prefix", "Route endpoint"],
)
def test_proxy_that_strips_root_path_forwards_the_same_target(
    rooted: Server, wire: Wire, target: str, expected: bytes
) -> None:
    assert forwarded(rooted, wire, target=target).target == expected


@pytest.mark.servers(*ROOTED, fast=ROOTED)
def test_3986_6_2_2_with_a_root_path_no_path_gets_out(rooted: Server, wire: Wire) -> None:
    for target in ESCAPES:
        refused(rooted, wire, f"/forward{target}", 400)
