"""An upstream that answers as the last part of the path says, whatever comes before that."""

import functools
import gzip
import ssl
import zlib
from collections.abc import Callable

from asgi_upstream import testing
from asgi_upstream.testing import Answer, Received

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


def zipped(body: bytes) -> Answer:
    return Answer().content(body, headers=[*FIELDS, ("content-encoding", "gzip")])


def item(request: Received) -> Answer:
    return Answer().content(b"x" * int(request.query.get("size", "1024")), headers=FIELDS)


def chunks(request: Received) -> Answer:
    """`count` chunks, `delay` seconds apart."""
    parts = [b"chunk-%d;" % number for number in range(int(request.query.get("count", "5")))]
    return Answer().chunks(*parts, every=float(request.query.get("delay", "0")), headers=FIELDS)


def echo(request: Received) -> Answer:
    return Answer().content(request.head + request.body, headers=FIELDS)


def status(request: Received) -> Answer:
    return Answer().status(int(request.query["code"]), headers=FIELDS[:1])


@functools.cache
def _bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    megabyte = bytes(1 << 20)
    return b"".join(packer.compress(megabyte) for _ in range(200)) + packer.flush()


def bomb(request: Received) -> Answer:
    """About 200 KB that unpack to 200 MB."""
    return zipped(_bomb())


def part() -> Answer:
    """A first chunk, and a moment in which it is relayed."""
    return Answer().chunks(b"s" * 100, 0.1, headers=FIELDS)


BEHAVIOURS: dict[str, Answer | Callable[[Received], Answer]] = {
    "item": item,
    "chunks": chunks,
    "echo": echo,
    "status": status,
    "headers": Answer().content(b"ok", headers=HEADERS),
    "never": Answer().stalls(),
    "silent_after_head": Answer().chunks(headers=FIELDS).stalls(after=0),
    "silent_mid_body": Answer().chunks(b"first", headers=FIELDS).stalls(after=5),
    "pour": Answer().chunks(b"p" * 65536, forever=True, headers=FIELDS),
    "events": Answer().events("tick", every=0.05, forever=True, headers=FIELDS[:1]),
    # How an upstream breaks before its headers are complete.
    "close_at_once": Answer().ends(),
    "reset_at_once": Answer().resets(),
    "close_in_head": Answer().broken("head"),
    "no_http": Answer().broken("not-http"),
    "huge_head": Answer().broken("huge-head"),
    "switch": Answer().broken("switch"),
    "odd_status": Answer().broken("status"),
    # How an upstream breaks in the middle of a body.
    "short": Answer().content(b"s" * 1000, headers=FIELDS).ends(after=100),
    "short_chunked": part().ends(after=100),
    "reset_mid_body": part().resets(after=100),
    "broken_chunk": Answer().raw(
        CHUNKED, b"64\r\n%s\r\n" % (b"s" * 100), 0.05, b"zz\r\nnot a chunk\r\n", FOREVER
    ),
    "zipped": zipped(gzip.compress(b'{"zipped": true}')),
    "broken_gzip": zipped(GZIP[:HALF] + b"\xff" * (len(GZIP) - HALF)),
    "short_gzip": zipped(GZIP[:-500]),
    "bomb": bomb,
}


def as_its_path_says(request: Received) -> Answer:
    behaviour = BEHAVIOURS[request.path.rsplit("/", 1)[-1]]
    return behaviour if isinstance(behaviour, Answer) else behaviour(request)


class Upstream(testing.Upstream):
    """One that is asked for any of `BEHAVIOURS`."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.any().calls(as_its_path_says)
