"""Content codings undone: every coding, however cut, and with bounded memory."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise

import brotli
import httpx
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_upstream import UpstreamProtocolError
from asgi_upstream._exchange.decoding import can_decode, content_encodings, decode_body

MAX_PIECE = 64 * 1024
TEXT = b"the quick brown fox, over and over. " * 50


def raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush()


CODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate, zlib": ("deflate", zlib.compress),
    "deflate, raw": ("deflate", raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstandard.compress),
}
every_coding = pytest.mark.parametrize(("coding", "encode"), CODERS.values(), ids=CODERS.keys())
gzip_like = pytest.mark.parametrize(
    ("coding", "encode"),
    [CODERS[name] for name in ("gzip", "x-gzip", "deflate, zlib", "deflate, raw")],
    ids=["gzip", "x-gzip", "deflate, zlib", "deflate, raw"],
)


async def pieces_of(chunks: Sequence[bytes], codings: list[str]) -> list[bytes]:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [piece async for piece in decode_body(body(), codings)]


def read(chunks: Sequence[bytes], *codings: str) -> bytes:
    return b"".join(asyncio.run(pieces_of(chunks, list(codings))))


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


@every_coding
def test_a_body_is_decoded(coding: str, encode: Callable[[bytes], bytes]) -> None:
    assert read([encode(TEXT)], coding) == TEXT


@every_coding
def test_a_body_that_arrives_byte_by_byte_is_decoded(
    coding: str, encode: Callable[[bytes], bytes]
) -> None:
    coded = encode(TEXT)
    assert read([coded[i : i + 1] for i in range(len(coded))], coding) == TEXT


@every_coding
def test_an_empty_body_that_was_coded_is_empty(
    coding: str, encode: Callable[[bytes], bytes]
) -> None:
    assert read([encode(b"")], coding) == b""


@every_coding
def test_no_bytes_at_all_are_an_empty_body(coding: str, encode: Callable[[bytes], bytes]) -> None:
    assert read([], coding) == b""
    assert read([b"", b""], coding) == b""


@pytest.mark.parametrize(("coding", "encode"), CODERS.values(), ids=CODERS.keys())
@settings(deadline=None)
@given(data=st.binary(max_size=300), places=st.lists(st.integers(0, 1000), max_size=6))
def test_where_the_bytes_are_cut_changes_nothing(
    coding: str, encode: Callable[[bytes], bytes], data: bytes, places: list[int]
) -> None:
    assert read(cut(encode(data), places), coding) == data


@settings(deadline=None)
@given(
    data=st.binary(max_size=200),
    names=st.lists(st.sampled_from(list(CODERS)), min_size=2, max_size=4),
    places=st.lists(st.integers(0, 1000), max_size=4),
)
def test_stacked_codings_are_undone_last_first(
    data: bytes, names: list[str], places: list[int]
) -> None:
    coded, codings = data, []
    for name in names:
        coding, encode = CODERS[name]
        coded = encode(coded)
        codings.append(coding)
    assert read(cut(coded, places), *codings) == data


def test_without_codings_the_body_passes_as_it_is() -> None:
    assert asyncio.run(pieces_of([b"a", b"b"], [])) == [b"a", b"b"]


@settings(deadline=None)
@given(
    members=st.lists(st.binary(max_size=50), min_size=1, max_size=4),
    places=st.lists(st.integers(0, 1000), max_size=6),
)
def test_all_members_of_a_gzip_body_are_read(members: list[bytes], places: list[int]) -> None:
    coded = b"".join(map(gzip.compress, members))
    assert read(cut(coded, places), "gzip") == b"".join(members)


@gzip_like
def test_a_body_that_ends_too_soon_is_an_error(
    coding: str, encode: Callable[[bytes], bytes]
) -> None:
    coded = encode(TEXT)
    for end in range(1, len(coded)):
        with pytest.raises(httpx.DecodingError):
            read([coded[:end]], coding)


def test_a_zstd_body_that_ends_too_soon_is_an_error() -> None:
    coding, encode = CODERS["zstd"]  # of br httpx does not notice it
    coded = encode(bytes(range(256)) * 20)
    with pytest.raises(httpx.DecodingError):
        read([coded[: len(coded) // 2]], coding)


def test_a_second_gzip_member_that_ends_too_soon_is_an_error() -> None:
    with pytest.raises(httpx.DecodingError):
        read([gzip.compress(b"one"), gzip.compress(b"two")[:-4]], "gzip")


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "br", "zstd"])
def test_a_body_that_is_not_what_its_coding_says_is_an_error(coding: str) -> None:
    with pytest.raises(httpx.DecodingError):
        read([b"\xff\xfe this is no compressed body " * 20], coding)


def test_a_wrong_checksum_is_an_error() -> None:
    coded = bytearray(gzip.compress(TEXT))
    coded[-8] ^= 1
    with pytest.raises(httpx.DecodingError):
        read([bytes(coded)], "gzip")


def test_garbage_after_the_last_gzip_member_is_an_error() -> None:
    with pytest.raises(httpx.DecodingError):
        read([gzip.compress(TEXT) + b"garbage that is no gzip member"], "gzip")


@pytest.mark.parametrize("coding", ["compress", "nonsense", "aes128gcm"])
def test_a_coding_that_nobody_can_undo_is_the_upstreams_error(coding: str) -> None:
    assert not can_decode(coding)
    with pytest.raises(UpstreamProtocolError):
        read([b"x"], coding)
    with pytest.raises(UpstreamProtocolError):
        read([gzip.compress(b"x")], coding, "gzip")


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "br", "zstd"])
def test_the_known_codings_can_be_undone(coding: str) -> None:
    assert can_decode(coding)


def test_a_failure_of_the_upstream_itself_passes_through_the_decoder() -> None:
    async def dies() -> AsyncIterator[bytes]:
        yield gzip.compress(TEXT)[:20]
        raise httpx.ReadError("gone")

    async def reading() -> None:
        async for _ in decode_body(dies(), ["gzip"]):
            pass

    with pytest.raises(httpx.ReadError, match="gone"):
        asyncio.run(reading())


BOMB = 8 * 1024 * 1024


@pytest.mark.parametrize(
    ("encode", "codings"),
    [
        (gzip.compress, ["gzip"]),
        (zlib.compress, ["deflate"]),
        (raw_deflate, ["deflate"]),
        (lambda data: gzip.compress(gzip.compress(data)), ["gzip", "gzip"]),
        (lambda data: gzip.compress(zlib.compress(data)), ["deflate", "gzip"]),
    ],
    ids=["gzip", "deflate", "raw deflate", "gzip of gzip", "gzip of deflate"],
)
def test_a_small_body_that_grows_comes_in_small_pieces(
    encode: Callable[[bytes], bytes], codings: list[str]
) -> None:
    coded = encode(bytes(BOMB))
    assert len(coded) < 16 * 1024
    pieces = asyncio.run(pieces_of([coded], codings))
    assert sum(map(len, pieces)) == BOMB
    assert max(map(len, pieces)) <= MAX_PIECE


def test_a_bomb_is_not_unpacked_further_than_it_is_read() -> None:
    async def first() -> int:
        async def body() -> AsyncIterator[bytes]:
            yield gzip.compress(bytes(BOMB))

        pieces = aiter(decode_body(body(), ["gzip"]))
        return len(await anext(pieces))

    assert asyncio.run(first()) <= MAX_PIECE


@pytest.mark.parametrize(
    ("value", "codings"),
    [
        (None, []),
        ("", []),
        ("identity", []),
        ("gzip", ["gzip"]),
        ("GZip", ["gzip"]),
        (" gzip , br,, identity", ["gzip", "br"]),
    ],
)
def test_codings_are_read_from_the_header_in_the_order_they_were_applied(
    value: str | None, codings: list[str]
) -> None:
    headers = {} if value is None else {"content-encoding": value}
    assert content_encodings(httpx.Response(200, headers=headers)) == codings


def test_codings_in_repeated_headers_are_one_list() -> None:
    headers = [("content-encoding", "gzip"), ("content-encoding", "br")]
    assert content_encodings(httpx.Response(200, headers=headers)) == ["gzip", "br"]
