"""Paths that leave the base in any disguise, by a table and by a reference."""

import posixpath
import re
import time
import timeit
from collections.abc import Callable, Iterator
from urllib.parse import quote_from_bytes, unquote_to_bytes, urljoin

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asgi_upstream._forwarding.target import is_path_traversal
from tests.support.examples import count_examples
from tests.support.flavor import httpx


@pytest.mark.parametrize(
    "segment",
    [
        b"..",
        b"%2e%2e",
        b"%2E%2e",
        b".%2e",
        b"%2E.",
        b"%252e%252e",
        b".%252E",
        b"%25252e%25252e",
        b"%2525252e.",
        b"%%32%65.",
        b"%c0%ae%c0%ae",
        b".%C0%AE",
        b"%e0%80%ae.",
        b"%f0%80%80%ae.",
        b"..;",
        b"..;a=b",
        b"..%3Ba",
        b"%2e%2e%3b",
        b"..%00",
        b"..%00.png",
        b"..\0",
        b"..%20",
        b"..%09",
        b"%20..",
        b"..%0d%0a",
        b".%09.",
        b"..%3fa",
        b"..%23a",
        b"%ef%bc%8e%EF%BC%8E",
        b".%e2%80%a4",
        b"%e2%80%a5",
        b"%25e2%2580%25a5",
        b"..%ef%bc%8fa",
        b"..%ef%bc%bca",
    ],
)
@pytest.mark.parametrize(
    "path", [b"/%b", b"/%b/", b"/a/%b", b"/a/%b/b", b"//%b", b"/a%%2f%b%%2Fb", b"/a\\%b", b"%b"]
)
def test_a_dot_segment_in_any_disguise_is_found(path: bytes, segment: bytes) -> None:
    assert is_path_traversal(path % segment)


@pytest.mark.parametrize(
    "path",
    [
        b"/..\\a",
        b"/..%5ca",
        b"/..%5Ca",
        b"/..%255ca",
        b"/..%252fa",
        b"/..%c0%afa",
        b"/..%c1%9ca",
        b"/..%e0%80%afa",
        b"/a%c1%9c../b",
        b"/a%e0%81%9c../b",
        b"/a%5c..%5cb",
        b"/;/../a",
        b"/a;x=%2f../b",
        b"/a%3b/..",
    ],
)
def test_a_slash_in_any_disguise_is_seen(path: bytes) -> None:
    assert is_path_traversal(path)


@pytest.mark.parametrize(
    "junk",
    [
        b"%ff",  # no UTF-8 at all
        b"%80",
        b"%c3",  # cut off
        b"%ed%a0%80",  # a surrogate
        b"%f5%80%80%80",
        b"%c0%80",  # overlong
        b"%c2%ad",  # soft hyphen
        b"%e2%80%8b",  # zero width space
        b"%e2%80%8d",
        b"%e2%80%ae",
        b"%e2%81%a0",
        b"%ef%bb%bf",  # byte order mark
        b"%ef%bf%bd",  # replacement character
        b"%ef%b8%8f",  # variation selector
        b"%cd%8f",
        b"%cc%80",  # combining mark
        b"%e3%85%a4",  # Hangul filler
        b"%f3%a0%80%a1",  # tag
        b"%00",
        b"%7f",  # delete
        b"+",  # a space in forms
        b"%c2%a0",
        b"%e2%80%a8",
        b"%25ff",
        b"%25e2%2580%258b",
        b"%ff%e2%80%8b%00",
        b"\xff",
        b"%u200b",
    ],
)
@pytest.mark.parametrize(
    "path", [b"/.%b.", b"/%b../a", b"/..%b/a", b"/a/.%b.%%2fb", b"/%%2e%b.;a/"]
)
def test_dot_segment_with_characters_that_decoders_drop_is_found(path: bytes, junk: bytes) -> None:
    assert is_path_traversal(path % junk)


@pytest.mark.parametrize(
    "path",
    [
        b"/%2%ffe%2e/",  # a decoder that drops the byte, then one that decodes again
        b"/%252%ffe%252e/",
        b"/%2%e2%80%8be./",
        b"/..%ff.txt",  # replaced by a question mark
        b"/..%ef%bf%bd.txt",
        b"/%u002e%u002e/",
        b"/%U002e%U002E/",
        b"/%uff0e./",
        b"/%uFF0E./",
        b"/%c0%a52e%c0%a52e/",  # an overlong percent sign
        b"/%f8%80%80%80%ae./",
        b"/%fc%80%80%80%80%ae./",
        b"/..%c0%80x/",
        b"/..%e2%88%95a",  # characters that look like slashes and dots
        b"/..%e2%81%84a",
        b"/%e3%80%82%ef%bd%a1/",
    ],
)
def test_dot_segment_after_a_second_decoding_is_found(path: bytes) -> None:
    assert is_path_traversal(path)


@pytest.mark.parametrize(
    "path",
    [
        b"/%ff.txt",
        b"/caf%e9.html",
        b"/a.%ff.b",
        b"/a%e2%80%8b../b",
        b"/..a%ff",
        b"/.%e2%82%ac.",
        b"/..%f0%9f%98%80",
        b"/%e0%a4%95%e0%a5%8d.%e0%a4%b7.txt",
        b"/e%cc%81.e%cc%81",
        b"/%e4%b8%ad%e6%96%87..%e4%b8%ad",
        b"/..%e4%b8%ad",
        b"/%ff/%ff",
        b"/%f0%9f%91%a9%e2%80%8d%f0%9f%91%a9.png",
        b"/a%u0041.b",
        b"/a%ud800.b",
        b"/%25%ff41.b",
        b"/%25.%25",
    ],
)
def test_innocent_path_with_unusual_characters_passes(path: bytes) -> None:
    assert not is_path_traversal(path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [(b"/a.%252541", False), (b"/a.%25252541", True), (b"/a%2525252541", False)],
)
def test_path_with_a_dot_is_refused_if_encoded_four_times(path: bytes, expected: bool) -> None:
    assert is_path_traversal(path) is expected


@pytest.mark.parametrize(
    "unit", [b"\\", b"/", b"/.", b"\\.a", b".\0", b"%5c", b"%ff", b"\xff", b"%2525", b"%u00"]
)
def test_path_check_is_linear_in_the_length(unit: bytes) -> None:
    def cost(size: int) -> float:
        path = (unit * size)[:size]
        # The time of this thread, to which other processes add nothing.
        check = timeit.Timer(lambda: is_path_traversal(path), timer=time.thread_time)
        return min(check.repeat(number=1, repeat=5))

    # Sixteen times the length: a quadratic check takes 256 times as long.
    assert cost(64 * 1024) < 100 * max(cost(4 * 1024), 50e-6)


INNOCENT = [
    b"...",
    b"....",
    b"a..b",
    b"..a",
    b"a..",
    b".well-known",
    b".%21.",
    b".%58.",
    b".",
    b"%2e",
    b"%2E",
    b"v1.2",
    b"..hidden",
    b"file..",
    b"%2e%2ea",
    b"a%2e%2e",
    b"...%20",
    b".;a",
    b"a;..",
    b"a;b=..",
    b"a%3b..",
    b"+",
    b"%zz",
    b"%",
    b"%25",
    b"100%25",
    b"%00",
    b"%20",
    b"a%2Fb",
    b"a%5Cb",
    b"caf%C3%A9",
    b"%FF",
    b"@evil",
    b"http:",
    b"[::1]",
    b"'\"|{}",
    b"",
]


@pytest.mark.parametrize("segment", INNOCENT)
@pytest.mark.parametrize("path", [b"/%b", b"/%b/", b"/a/%b/b", b"//%b"])
def test_an_innocent_path_is_not_refused(path: bytes, segment: bytes) -> None:
    assert not is_path_traversal(path % segment)


@given(st.lists(st.sampled_from(INNOCENT), max_size=6))
def test_no_path_of_innocent_segments_is_refused(segments: list[bytes]) -> None:
    assert not is_path_traversal(b"/" + b"/".join(segments))


@given(st.binary(max_size=20).filter(lambda b: b"%" not in b and b"." not in b))
def test_no_path_without_a_dot_is_refused_once_it_is_encoded(text: bytes) -> None:
    # The three that are the overlong forms of a dot and of slashes are no UTF-8 at all.
    if b"\xc0" not in text and b"\xe0" not in text and b"\xf0" not in text:
        assert not is_path_traversal(quote_from_bytes(text, safe="/").encode())


BASE = "/base/of/the/upstream"


def once_decoded(path: bytes) -> bytes:
    return unquote_to_bytes(path)


def with_overlong_read(path: bytes) -> bytes:
    """As decoders of UTF-8 read it that take any lead byte and count on no shortest form."""

    def short(match: re.Match[bytes]) -> bytes:
        lead, *rest = match[0]
        value = lead & (0x7F >> (len(rest) + 1))
        for byte in rest:
            value = value << 6 | byte & 0x3F
        return bytes([value]) if value < 0x80 else match[0]

    form = rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f][\x80-\xbf]{2}"
    return re.sub(form, short, path)


def with_slashes_for_backslashes(path: bytes) -> bytes:
    return path.replace(b"\\", b"/")


def without_params(path: bytes) -> bytes:
    return re.sub(rb";[^/]*", b"", path)


def cut_at_nul(path: bytes) -> bytes:
    return path.split(b"\0")[0]


def with_each_segment_cut_at_nul(path: bytes) -> bytes:
    return b"/".join(segment.split(b"\0")[0] for segment in path.split(b"/"))


def with_trimmed_segments(path: bytes) -> bytes:
    return b"/".join(segment.strip() for segment in path.split(b"/"))


def cut_at_a_question_mark(path: bytes) -> bytes:
    return re.split(rb"[?#]", path)[0]


READINGS: list[Callable[[bytes], bytes]] = [
    with_overlong_read,
    with_slashes_for_backslashes,
    without_params,
    cut_at_nul,
    with_each_segment_cut_at_nul,
    with_trimmed_segments,
    cut_at_a_question_mark,
]


def readings(path: bytes) -> Iterator[bytes]:
    """Decoded 0 to 3 times, and after each of these in each way that an upstream may go on."""
    seen = set()
    for _ in range(4):
        frontier = [path]
        for reading in READINGS:
            frontier += [reading(one) for one in frontier]
        for one in frontier:
            if one not in seen:
                seen.add(one)
                yield one
        path = once_decoded(path)


def by_posixpath(path: str) -> str:
    return posixpath.normpath(BASE + path)


def by_urljoin(path: str) -> str:
    return urljoin(f"http://h{BASE}/", "." + path).removeprefix("http://h")


def by_httpx(path: str) -> str:
    return httpx.URL(f"http://h{BASE}{path}").path


def as_nginx(path: str) -> str:
    """Slashes are merged first, then dot segments go, and one too many stops at the root."""
    kept: list[str] = []
    for segment in re.sub("/+", "/", BASE + path).split("/"):
        if segment == "..":
            kept = kept[:-1]
        elif segment not in (".", ""):
            kept.append(segment)
    return "/" + "/".join(kept)


def leaves(path: bytes) -> bool:
    for reading in readings(path):
        text = reading.decode("latin-1")
        if not text.startswith("/"):
            continue  # cut to nothing, and so at the base
        if text.count(".") < 2:
            continue  # nothing to climb with, and the normalising below is slow
        for normalised in (by_posixpath, by_urljoin, by_httpx, as_nginx):
            try:
                result = normalised(text)
            except (httpx.InvalidURL, ValueError):
                continue  # who normalises so refuses it
            if result != BASE and not result.startswith(BASE + "/"):
                return True
    return False


@pytest.mark.parametrize("path", [b"/..", b"/..;/a", b"/%252e%252e/a", b"/..%5cx", b"/.%c0%ae/"])
def test_the_reference_knows_what_leaves(path: bytes) -> None:
    assert leaves(path)


@pytest.mark.parametrize("segment", INNOCENT)
def test_the_reference_knows_what_stays(segment: bytes) -> None:
    assert not leaves(b"/" + segment + b"/a")


dots_and_disguises = st.sampled_from(
    b". . .. %2e %2E %252e %25252e %c0%ae %e0%80%ae / / // %2f %252F %5c \\ %c0%af %c1%9c ; %3b "
    b"%00 %09 %0a %0d %20 ? # %3f %23 a b. .b a%2e % %25 2e 5c + .. ..".split()
)
paths_that_try = st.lists(dots_and_disguises, max_size=8).map(lambda parts: b"/" + b"".join(parts))


@settings(max_examples=count_examples(83), deadline=None)
@given(paths_that_try)
@example(b"/.%09./a")
@example(b"/%e0%80%ae./a")
def test_whatever_leaves_the_base_by_any_reading_is_refused(path: bytes) -> None:
    if leaves(path):
        assert is_path_traversal(path)


@settings(deadline=None)
@given(st.binary(max_size=10))
def test_no_bytes_at_all_leave_the_base_unseen(path: bytes) -> None:
    if leaves(b"/" + path):
        assert is_path_traversal(b"/" + path)
