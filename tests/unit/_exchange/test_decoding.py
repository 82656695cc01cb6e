"""Content codings undone: every coding, however cut, and with bounded memory."""

import asyncio
import gzip
import importlib
import types
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_upstream import UpstreamProtocolError
from asgi_upstream._exchange import decoding
from asgi_upstream._exchange.body import DecodedBody
from asgi_upstream._exchange.decoding import (
    accept_decodable,
    accept_whole_decodable,
    can_decode,
    content_encodings,
)
from tests.support.codings import raw_deflate
from tests.support.examples import count_examples
from tests.support.flavor import httpx

MAX_PIECE = 64 * 1024
TEXT = b"the quick brown fox, over and over. " * 50


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

    return [piece async for piece in DecodedBody(body(), codings, httpx)]


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
@settings(deadline=None, max_examples=count_examples(30))
@given(data=st.binary(max_size=300), places=st.lists(st.integers(0, 1000), max_size=6))
def test_where_the_bytes_are_cut_changes_nothing(
    coding: str, encode: Callable[[bytes], bytes], data: bytes, places: list[int]
) -> None:
    assert read(cut(encode(data), places), coding) == data


@settings(deadline=None, max_examples=count_examples(30))
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


@settings(deadline=None, max_examples=count_examples(30))
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


@pytest.mark.parametrize("coding", ["br", "zstd"])
def test_truncated_br_and_zstd_bodies_are_an_error(coding: str) -> None:
    coded = CODERS[coding][1](bytes(range(256)) * 20)
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


def test_decoder_passes_an_upstream_failure_on() -> None:
    async def dies() -> AsyncIterator[bytes]:
        yield gzip.compress(TEXT)[:20]
        raise httpx.ReadError("gone")

    async def reading() -> None:
        async for _ in DecodedBody(dies(), ["gzip"], httpx):
            pass

    with pytest.raises(httpx.ReadError, match="gone"):
        asyncio.run(reading())


@pytest.mark.parametrize("packages", [("zstandard",), ("backports.zstd",)])
def test_zstd_is_decoded_by_either_package(
    packages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_first(*names: str) -> object:
        return next((importlib.import_module(name) for name in names if name in packages), None)

    monkeypatch.setattr(decoding, "_import_first", import_first)
    coded = zstandard.compress(bytes(BOMB)) + zstandard.compress(TEXT)
    pieces = asyncio.run(pieces_of([coded[:9], coded[9:]], ["zstd"]))
    assert b"".join(pieces) == bytes(BOMB) + TEXT
    assert max(map(len, pieces)) <= MAX_PIECE
    with pytest.raises(httpx.DecodingError, match="truncated"):
        read([coded[:-1]], "zstd")


def test_br_is_decoded_by_a_package_that_cannot_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Decompressor:
        def __init__(self) -> None:
            self._inner = brotli.Decompressor()
            self.process = self._inner.process
            self.is_finished = self._inner.is_finished

    package = types.SimpleNamespace(Decompressor=Decompressor, error=brotli.error)
    monkeypatch.setattr(decoding, "_import_first", lambda *names: package)
    coded = brotli.compress(bytes(BOMB), quality=1)
    pieces = asyncio.run(pieces_of([coded], ["br"]))
    assert b"".join(pieces) == bytes(BOMB)
    assert max(map(len, pieces)) <= MAX_PIECE
    with pytest.raises(httpx.DecodingError, match="truncated"):
        read([coded[:-1]], "br")


def test_coding_without_package_cannot_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_import_first", lambda *names: None)
    assert not can_decode("br")
    assert not can_decode("zstd")
    assert accept_decodable([(b"accept-encoding", b"gzip;q=0.5, br, zstd")]) == [
        (b"accept-encoding", b"gzip;q=0.5")
    ]
    assert accept_decodable([(b"accept-encoding", b"br, zstd")]) == [
        (b"accept-encoding", b"identity")
    ]


@pytest.mark.parametrize("count", [6, 3000])
def test_too_many_codings_are_the_upstreams_error(count: int) -> None:
    with pytest.raises(UpstreamProtocolError):
        read([b""], *["gzip"] * count)


def test_five_codings_are_decoded() -> None:
    coded = TEXT
    for _ in range(5):
        coded = gzip.compress(coded)
    assert read([coded], *["gzip"] * 5) == TEXT


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"gzip, deflate, br, zstd", b"gzip, deflate, br, zstd"),
        (b"GZIP;q=0.8, sdch, dcb;q=1", b"GZIP;q=0.8"),
        (b"gzip;q=0, compress", b"identity"),
        (b"*", b"identity"),
        (b"gzip, *;q=0.1", b"gzip"),
        (b"gzip, *; q=0.000, identity;q=0.5", b"gzip, *; q=0.000, identity;q=0.5"),
        (b"compress, identity;q=0", b"identity"),
        (b"", b"identity"),
    ],
)
def test_accept_encoding_is_reduced_to_what_can_be_decoded(value: bytes, expected: bytes) -> None:
    headers = [(b"host", b"a"), (b"accept-encoding", value), (b"Range", b"bytes=0-1")]
    assert accept_whole_decodable(headers) == [(b"host", b"a"), (b"accept-encoding", expected)]


def test_request_without_accept_encoding_gets_none() -> None:
    headers = [(b"host", b"a"), (b"if-range", b'"x"')]
    assert accept_whole_decodable(headers) == [(b"host", b"a")]


def test_repeated_accept_encodings_are_one_list() -> None:
    headers = [(b"accept-encoding", b"gzip"), (b"accept-encoding", b"compress, br")]
    assert accept_decodable(headers) == [(b"accept-encoding", b"gzip, br")]


BOMB = 8 * 1024 * 1024


@pytest.mark.parametrize(
    ("encode", "codings"),
    [
        (gzip.compress, ["gzip"]),
        (zlib.compress, ["deflate"]),
        (raw_deflate, ["deflate"]),
        (brotli.compress, ["br"]),
        (zstandard.compress, ["zstd"]),
        (lambda data: brotli.compress(gzip.compress(data)), ["gzip", "br"]),
        (lambda data: gzip.compress(gzip.compress(data)), ["gzip", "gzip"]),
        (lambda data: gzip.compress(zlib.compress(data)), ["deflate", "gzip"]),
    ],
    ids=[
        "gzip",
        "deflate",
        "raw deflate",
        "br",
        "zstd",
        "br of gzip",
        "gzip of gzip",
        "gzip of deflate",
    ],
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

        pieces = aiter(DecodedBody(body(), ["gzip"], httpx))
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
        ("none", []),
        ("None, identity", []),
        (" gzip , br,, identity", ["gzip", "br"]),
    ],
)
def test_content_encodings_are_in_the_order_of_application(
    value: str | None, codings: list[str]
) -> None:
    headers = {} if value is None else {"content-encoding": value}
    assert content_encodings(httpx.Response(200, headers=headers)) == codings


def test_codings_in_repeated_headers_are_one_list() -> None:
    headers = [("content-encoding", "gzip"), ("content-encoding", "br")]
    assert content_encodings(httpx.Response(200, headers=headers)) == ["gzip", "br"]
