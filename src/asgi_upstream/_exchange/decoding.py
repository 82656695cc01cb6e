"""Decodes content codings with bounded memory (RFC 9110 8.4). No input or output happens here.

httpx decodes each chunk in one step, however large the result, and accepts a truncated gzip body. A
proxy can afford neither. So every decoder here yields pieces of bounded size, and reports whether
the body was complete.
"""

import importlib
import re
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from typing import Any, Protocol

import httpx

from .._headers import RawHeaders
from ..errors import protocol_error

MAX_CODINGS = 5
"""Content codings of one body. urllib3 and curl have the same limit."""

_MAX_OUTPUT = 65536
_BROTLI_OUTPUT = 16384  # brotli returns up to twice the limit
_INPUT_SLICE = 16  # bytes, if the package cannot limit its output
_MAX_WINDOW = 8 * 1024 * 1024  # for zstd in HTTP (RFC 9659)
_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_IDENTITY = frozenset(("", "identity", "none"))
_ZERO_WEIGHT = re.compile(r"q\s*=\s*0(\.0*)?")


class Decoder(Protocol):
    """Decodes one content coding of one body."""

    errors: tuple[type[Exception], ...]

    def decode(self, data: bytes) -> Iterator[bytes]: ...
    def is_complete(self) -> bool: ...


def content_encodings(response: httpx.Response) -> list[str]:
    """Return the content codings of a response, in the order in which they were applied."""
    names = response.headers.get_list("content-encoding", split_commas=True)
    return [name for name in map(str.lower, map(str.strip, names)) if name not in _IDENTITY]


def can_decode(coding: str) -> bool:
    """Return whether the coding can be decoded with the installed packages."""
    return _find_decoder(coding) is not None


def make_decoders(codings: list[str]) -> list[Decoder]:
    """Return the decoders for `codings`, in the order in which they have to be used.

    Raises:
        UpstreamProtocolError: If a coding cannot be decoded, or if there are too many.
    """
    if len(codings) > MAX_CODINGS:
        raise protocol_error(f"more than {MAX_CODINGS} content codings")
    decoders: list[Decoder] = []
    for coding in reversed(codings):
        make_decoder = _find_decoder(coding)
        if make_decoder is None:
            raise protocol_error(f"cannot decode content-encoding {coding!r}")
        decoders.append(make_decoder())
    return decoders


def accept_decodable(headers: RawHeaders) -> RawHeaders:
    """Return request headers that accept only codings that can be decoded."""
    accepted = [value for name, value in headers if name.lower() == b"accept-encoding"]
    if not accepted:
        return headers
    codings = _decodable_codings(b",".join(accepted).decode("latin-1")).encode("latin-1")
    if accepted == [codings]:
        return headers
    kept = [field for field in headers if field[0].lower() != b"accept-encoding"]
    return [*kept, (b"accept-encoding", codings)]


def accept_whole_decodable(headers: RawHeaders) -> RawHeaders:
    """Return request headers that accept only a whole body in codings that can be decoded.

    Range and If-Range are dropped, because a part of a compressed body cannot be decoded, and a
    part of any body must not be changed as if it were the whole.
    """
    whole = [field for field in headers if field[0].lower() not in (b"range", b"if-range")]
    return accept_decodable(whole)


def _decodable_codings(accept_encoding: str) -> str:
    """Return the codings of an Accept-Encoding that can be decoded, with their weights."""
    kept: list[str] = []
    acceptable = False
    for item in filter(None, map(str.strip, accept_encoding.split(","))):
        coding, _, weight = (part.strip().lower() for part in item.partition(";"))
        refused = _ZERO_WEIGHT.fullmatch(weight) is not None
        # "*" stands for any coding. With the weight 0 it refuses all others, which does no harm.
        if coding == "identity" or can_decode(coding) or (coding == "*" and refused):
            kept.append(item)
            acceptable = acceptable or not refused
    return ", ".join(kept) if acceptable else "identity"


@cache
def _import_first(*names: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _find_decoder(coding: str) -> Callable[[], Decoder] | None:
    if coding in _WBITS:
        return lambda: _ZlibDecoder(_WBITS[coding])
    if coding == "br" and (brotli := _import_first("brotli", "brotlicffi")):
        return lambda: _BrotliDecoder(brotli)
    if coding == "zstd":
        if bounded := _import_first("compression.zstd", "backports.zstd"):
            return lambda: _ZstdDecoder(bounded)
        if zstandard := _import_first("zstandard"):
            return lambda: _ZstandardDecoder(zstandard)
    return None


class _ZlibDecoder:
    errors: tuple[type[Exception], ...] = (zlib.error,)

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._inflate = zlib.decompressobj(wbits)
        self._head = b""

    def decode(self, data: bytes) -> Iterator[bytes]:
        if len(self._head) < 2:
            self._head = data = self._head + data
            if len(data) < 2:
                return
            # Some servers send "deflate" without zlib's two bytes. This is the check for them.
            raw = data[0] & 15 != 8 or int.from_bytes(data[:2]) % 31
            if self._wbits == _WBITS["deflate"] and raw:
                self._inflate = zlib.decompressobj(-15)
        while data:
            if self._inflate.eof:  # another gzip member follows (RFC 1952 2.2), or padding
                if not (data := data.lstrip(b"\0")):
                    break
                self._inflate = zlib.decompressobj(self._wbits)
            if piece := self._inflate.decompress(data, _MAX_OUTPUT):
                yield piece
            inflate = self._inflate
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail

    def is_complete(self) -> bool:
        return not self._head or self._inflate.eof


class _BrotliDecoder:
    """Decodes with the package `brotli` or `brotlicffi`."""

    def __init__(self, package: Any) -> None:
        self.errors: tuple[type[Exception], ...] = (package.error,)
        self._decompressor = package.Decompressor()
        name = "process" if hasattr(self._decompressor, "process") else "decompress"
        self._process: Callable[..., bytes] = getattr(self._decompressor, name)
        self._started = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        if not data:
            return
        self._started = True
        if not hasattr(self._decompressor, "can_accept_more_data"):  # brotli before 1.2
            yield from _decode_slices(self._process, data)
            return
        piece = self._process(data, output_buffer_limit=_BROTLI_OUTPUT)
        while piece or not self._decompressor.can_accept_more_data():
            yield piece
            piece = self._process(b"", output_buffer_limit=_BROTLI_OUTPUT)

    def is_complete(self) -> bool:
        return not self._started or bool(self._decompressor.is_finished())


class _ZstdDecoder:
    """Decodes with the standard library's `compression.zstd`, or its backport."""

    def __init__(self, package: Any) -> None:
        self.errors: tuple[type[Exception], ...] = (package.ZstdError,)
        window = package.DecompressionParameter.window_log_max
        self._options = {window: _MAX_WINDOW.bit_length() - 1}
        self._package = package
        self._decompressor: Any = None

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._decompressor is None or self._decompressor.eof:  # another frame
                self._decompressor = self._package.ZstdDecompressor(options=self._options)
            piece = self._decompressor.decompress(data, _MAX_OUTPUT)
            while piece or not (self._decompressor.needs_input or self._decompressor.eof):
                yield piece
                if self._decompressor.needs_input or self._decompressor.eof:
                    break
                piece = self._decompressor.decompress(b"", _MAX_OUTPUT)
            data = self._decompressor.unused_data if self._decompressor.eof else b""

    def is_complete(self) -> bool:
        return self._decompressor is None or bool(self._decompressor.eof)


class _ZstandardDecoder:
    """Decodes with the package `zstandard`, which cannot limit its output.

    A block of zstd has at most 128 KiB and takes at least four bytes, so a slice of the input
    limits the output.
    """

    def __init__(self, package: Any) -> None:
        self.errors: tuple[type[Exception], ...] = (package.ZstdError,)
        self._package = package
        self._decompressor: Any = None

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._decompressor is None or self._decompressor.eof:  # another frame
                context = self._package.ZstdDecompressor(max_window_size=_MAX_WINDOW)
                self._decompressor = context.decompressobj()
            part, data = data[:_INPUT_SLICE], data[_INPUT_SLICE:]
            yield from _split(self._decompressor.decompress(part))
            if self._decompressor.eof:
                data = self._decompressor.unused_data + data

    def is_complete(self) -> bool:
        return self._decompressor is None or bool(self._decompressor.eof)


def _decode_slices(decode: Callable[[bytes], bytes], data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _INPUT_SLICE):
        yield from _split(decode(data[start : start + _INPUT_SLICE]))


def _split(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _MAX_OUTPUT):
        yield data[start : start + _MAX_OUTPUT]


def decode_chunk(decoders: list[Decoder], data: bytes) -> Iterator[bytes]:
    """Yield the decoded pieces of a chunk, each of bounded size. Some may be empty."""
    pieces: Iterator[bytes] = iter((data,))
    for decoder in decoders:
        pieces = chain.from_iterable(map(decoder.decode, pieces))
    return pieces
