"""Whatever bytes an upstream sends in whatever pieces, both transports make the same of them."""

import asyncio
import re

from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from tests.support.examples import count_examples
from tests.support.two_transports import Sent, agree, both, refused


def mostly(usual: bytes | list[bytes], *odd: bytes) -> st.SearchStrategy[bytes]:
    """One of the usual ones, or now and then an odd one."""
    usual = [usual] if isinstance(usual, bytes) else usual
    return st.integers(0, 60).flatmap(
        lambda number: st.sampled_from(list(odd) if number == 17 and odd else usual)
    )


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


LINE_END = mostly(b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\n")
STATUS_LINE = joined(
    mostly([b"HTTP/1.1"] * 4 + [b"HTTP/1.0"], b"HTTP/1.2", b"HTTP/2", b"http/1.1", b"HTTP/1.1 "),
    mostly(b" ", b"", b"\t", b"  "),
    mostly(
        [b"200", b"201", b"404", b"500", b"204", b"304"], b"099", b"600", b"20", b"2000", b"abc"
    ),
    mostly([b" OK", b"", b" ", b" \xe9 two "], b"\tOK", b" O\0K", b" O\rK", b"OK", b" \x0b"),
    LINE_END,
)
VALUE = mostly(
    [b"", b"y", b"two words", b"\xff\x80", b" \ty \t", b'"a, b"'],
    b"a\0b",
    b"a\rb",
    b"a\r\n folded",
    b"a\n\tfolded",
    b"\r\n  ",
)
FIELD = joined(
    mostly(
        [b"x", b"X-Name", b"set-cookie", b"!#$%&'*+-.^_`|~"],
        b"",
        b" x",
        b"x y",
        b"\xff",
        b"x\0",
        b"\tx",
    ),
    mostly([b":", b": "], b" :", b"", b"::"),
    VALUE,
    LINE_END,
)
CONNECTION = joined(
    st.sampled_from([b"connection: ", b"Connection:"]),
    st.sampled_from([b"close", b"keep-alive", b"x, CLOSE", b"upgrade", b"closed", b",", b""]),
    LINE_END,
)
BODY = st.sampled_from([b"", b"x", b"hello, world", b"\r\n\r\n", bytes(range(256)), b"z" * 70_000])
LENGTH_VALUE = mostly(b"", b" ", b"+", b"-", b"0x", b"0", b"1, ", b",")
CHUNK_SIZE_END = mostly(
    [b"\r\n", b";a=b\r\n", b";\r\n", b" \r\n"], b"\n", b" ;a\r\n", b"x\r\n", b"\r"
)
CODING = joined(
    mostly([b"transfer-encoding: ", b"Transfer-Encoding:"], b"transfer-encoding : "),
    mostly([b"chunked", b"Chunked", b"chunked \t"], b"gzip", b"gzip, chunked", b"chunked, x", b""),
    LINE_END,
)
TRAILERS = joined(
    st.lists(FIELD, max_size=2).map(b"".join),
    mostly(b"\r\n", b"", b"\n", b"\r", b"\0"),
)


@st.composite
def framed(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Fields of a framing, and the body that they announce, or nearly."""
    body = draw(BODY)
    kind = draw(st.sampled_from(["length", "chunked", "close", "twice"]))
    if kind == "close":
        return b"", body
    if kind == "chunked":
        fields, data, at = draw(CODING), b"", 0
        while at < len(body):
            size = draw(st.integers(1, len(body)))
            piece = body[at : at + size]
            at += size
            line = b"%x" % len(piece) if draw(st.booleans()) else b"%03X" % len(piece)
            data += (
                line + draw(CHUNK_SIZE_END) + piece + draw(mostly(b"\r\n", b"\n", b"", b"x\r\n"))
            )
        return fields, data + draw(mostly([b"0", b"000"], b"", b"-0")) + draw(
            CHUNK_SIZE_END
        ) + draw(TRAILERS)
    length = b"%d" % len(body)
    fields = b"Content-Length: " + draw(LENGTH_VALUE) + length + draw(LINE_END)
    if kind == "twice":
        another = draw(mostly([length, length + b", " + length], b"%d" % (len(body) + 1)))
        fields += b"content-length:" + another + draw(LINE_END)
    return fields, body[: draw(st.sampled_from([len(body)] * 4 + [len(body) // 2]))]


INTERIM = joined(
    st.sampled_from([b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 103\r\n", b"HTTP/1.0 199 x\r\n"]),
    st.lists(FIELD, max_size=2).map(b"".join),
    LINE_END,
)
CHANGE = st.tuples(
    st.integers(0, 400),
    st.integers(0, 2),
    st.sampled_from(
        [b"\r", b"\n", b" ", b"\t", b":", b",", b"0", b"9", b"a", b"\0", b"\xff", b"\r\n"]
    ),
)


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    framing, body = draw(framed())
    fields = draw(st.lists(FIELD | CONNECTION, max_size=4))
    fields.insert(draw(st.integers(0, len(fields))), framing)
    raw = b"".join(draw(st.lists(INTERIM, max_size=2) if draw(st.booleans()) else st.just([])))
    raw += draw(STATUS_LINE) + b"".join(fields) + draw(LINE_END) + body
    if draw(st.integers(0, 3)) == 0:
        for place, removed, added in draw(st.lists(CHANGE, max_size=3)):
            raw = raw[:place] + added + raw[place + removed :]
    return raw + draw(
        mostly(b"", b"HTTP/1.1 200 Smuggled\r\ncontent-length: 0\r\n\r\n", b"\r\n", b"x")
    )


@st.composite
def sendings(draw: st.DrawFn) -> Sent:
    raw = draw(responses())
    cuts = draw(st.lists(st.integers(0, len(raw)), max_size=6).map(sorted))
    if draw(st.integers(0, 4)) == 0:  # its first bytes one by one
        cuts = [*range(min(len(raw), 300)), *(cut for cut in cuts if cut >= 300)]
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    return Sent([piece for piece in pieces if piece], draw(st.booleans()))


# What of it is refused on purpose, as above, or more strictly than by h11.
REFUSED = re.compile(
    rb"content-length.*transfer-encoding|transfer-encoding.*content-length"
    rb"|;[^\n]*(?:\0|\r(?!\n))"
    rb"|[0-9a-f]{17}"
    rb"|HTTP/(?!1\.[01] )",
    re.IGNORECASE | re.DOTALL,
)


@settings(
    max_examples=count_examples(100),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(sendings(), st.sampled_from(["GET"] * 5 + ["HEAD", "POST"]))
def test_both_transports_agree_on_any_bytes_in_any_pieces(
    runner: asyncio.Runner, sent: Sent, method: str
) -> None:
    ours, theirs = both(runner, sent, method)
    note(repr((b"".join(sent.pieces), ours, theirs)))
    event(f"{ours.error and ours.error.__name__} {ours.status is not None}")
    if not (refused(ours) and REFUSED.search(b"".join(sent.pieces))):
        agree(ours, theirs)
