"""An upstream that answers as the last part of the path says, whatever comes before that."""

import functools
import gzip
import ssl
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trustme

from asgi_upstream import testing
from asgi_upstream.testing import ReceivedRequest, ScriptedResponse

FOREVER = 3600.0
FIELDS = [("x-upstream", "yes"), ("content-type", "application/octet-stream")]
CHUNKED = b"HTTP/1.1 200 OK\r\nx-upstream: yes\r\ntransfer-encoding: chunked\r\n\r\n"
HEADERS = [
    ("x-upstream", "yes"), ("x-twice", "1"), ("X-Twice", "2"), ("set-cookie", "a=1"),
    ("set-cookie", "b=2"), ("x-obs", "\xe9"), ("connection", "x-private"), ("x-private", "1"),
    ("keep-alive", "timeout=5"), ("date", "Thu, 01 Jan 1970 00:00:00 GMT"), ("server", "inside"),
    ("proxy-authenticate", "x"), ("x-empty", ""),
]  # fmt: skip
GZIP = gzip.compress(bytes(range(256)) * 4000)
HALF = len(GZIP) // 2


def zipped(body: bytes) -> ScriptedResponse:
    return ScriptedResponse().content(body, headers=[*FIELDS, ("content-encoding", "gzip")])


def item(request: ReceivedRequest) -> ScriptedResponse:
    return ScriptedResponse().content(b"x" * int(request.query.get("size", "1024")), headers=FIELDS)


def chunks(request: ReceivedRequest) -> ScriptedResponse:
    """`count` chunks, `delay` seconds apart."""
    parts = [b"chunk-%d;" % number for number in range(int(request.query.get("count", "5")))]
    return ScriptedResponse().chunks(
        *parts, every=float(request.query.get("delay", "0")), headers=FIELDS
    )


def echo(request: ReceivedRequest) -> ScriptedResponse:
    return ScriptedResponse().content(request.head + request.body, headers=FIELDS)


def status(request: ReceivedRequest) -> ScriptedResponse:
    return ScriptedResponse().status(int(request.query["code"]), headers=FIELDS[:1])


@functools.cache
def _bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    megabyte = bytes(1 << 20)
    return b"".join(packer.compress(megabyte) for _ in range(200)) + packer.flush()


def bomb(request: ReceivedRequest) -> ScriptedResponse:
    """About 200 KB that unpack to 200 MB."""
    return zipped(_bomb())


def part() -> ScriptedResponse:
    """A first chunk, and a moment in which it is relayed."""
    return ScriptedResponse().chunks(b"s" * 100, 0.1, headers=FIELDS)


BEHAVIOURS: dict[str, ScriptedResponse | Callable[[ReceivedRequest], ScriptedResponse]] = {
    "item": item,
    "chunks": chunks,
    "echo": echo,
    "status": status,
    "headers": ScriptedResponse().content(b"ok", headers=HEADERS),
    "never": ScriptedResponse().stall(),
    "silent_after_head": ScriptedResponse().chunks(headers=FIELDS).stall(after=0),
    "silent_mid_body": ScriptedResponse().chunks(b"first", headers=FIELDS).stall(after=5),
    "pour": ScriptedResponse().chunks(b"p" * 65536, forever=True, headers=FIELDS),
    "events": ScriptedResponse().events("tick", every=0.05, forever=True, headers=FIELDS[:1]),
    # How an upstream breaks before its headers are complete.
    "close_at_once": ScriptedResponse().close(),
    "reset_at_once": ScriptedResponse().reset(),
    "close_in_head": ScriptedResponse().broken("head"),
    "no_http": ScriptedResponse().broken("not-http"),
    "huge_head": ScriptedResponse().broken("huge-head"),
    "switch": ScriptedResponse().broken("switch"),
    "odd_status": ScriptedResponse().broken("status"),
    # How an upstream breaks in the middle of a body.
    "short": ScriptedResponse().content(b"s" * 1000, headers=FIELDS).close(after=100),
    "short_chunked": part().close(after=100),
    "reset_mid_body": part().reset(after=100),
    "broken_chunk": ScriptedResponse().raw(
        CHUNKED, b"64\r\n%s\r\n" % (b"s" * 100), 0.05, b"zz\r\nnot a chunk\r\n", FOREVER
    ),
    "zipped": zipped(gzip.compress(b'{"zipped": true}')),
    "broken_gzip": zipped(GZIP[:HALF] + b"\xff" * (len(GZIP) - HALF)),
    "short_gzip": zipped(GZIP[:-500]),
    "bomb": bomb,
}


def as_its_path_says(request: ReceivedRequest) -> ScriptedResponse:
    behaviour = BEHAVIOURS[request.path.rsplit("/", 1)[-1]]
    return behaviour if isinstance(behaviour, ScriptedResponse) else behaviour(request)


class Upstream(testing.Upstream):
    """One that is asked for any of `BEHAVIOURS`."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.any().callback(as_its_path_says)


@contextmanager
def untrusted_upstream() -> Iterator[Upstream]:
    """An upstream whose certificate is signed by an authority that no client knows."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with Upstream(tls=tls) as upstream:
        yield upstream
