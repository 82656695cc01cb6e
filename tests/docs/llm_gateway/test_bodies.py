"""Compressed request bodies, as coding agents send them, and the heartbeats of a silent model."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
import openai
import pytest
import zstandard
from anthropic import Anthropic
from openai import OpenAI

from asgi_upstream.testing import Upstream
from examples.llm_gateway.bodies import MAX_BYTES
from examples.llm_gateway.model import WORDS
from tests.docs.llm_gateway.gateway import Serve
from tests.support.codings import raw_deflate

ASKED = {"model": "swift-1", "max_tokens": 2, "messages": [{"role": "user", "content": "a b"}]}
BODY = json.dumps(ASKED).encode()


def zstd_stream(body: bytes) -> bytes:
    """Compress without the size in the header, as an encoder of streams does."""
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(body) + packer.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "upper": ("GZIP", gzip.compress),
    "members": ("gzip", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:])),
    "deflate": ("deflate", zlib.compress),
    "raw-deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstandard.compress),
    "zstd-stream": ("zstd", zstd_stream),
    "zstd-frames": ("zstd", lambda b: zstandard.compress(b[:9]) + zstandard.compress(b[9:])),
    "identity": ("identity", bytes),
}
every_coding = pytest.mark.parametrize(
    ("coding", "encode"), [pytest.param(*value, id=name) for name, value in ENCODERS.items()]
)


class Compressing(httpx2.HTTPTransport):
    """Compresses what a client sends."""

    def __init__(self, coding: str, encode: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._coding, self._encode = coding, encode

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body = self._encode(request.read())
        headers = httpx2.Headers(request.headers)
        headers["content-encoding"], headers["content-length"] = self._coding, str(len(body))
        return super().handle_request(
            httpx2.Request(request.method, request.url, headers=headers, content=body)
        )


def post(url: str, body: bytes | Iterator[bytes], coding: str) -> httpx.Response:
    headers = {"authorization": "Bearer key-of-ann", "content-encoding": coding}
    path = f"{url}/v1/chat/completions"
    return httpx.post(path, content=body, headers=headers, trust_env=False, timeout=60)


@every_coding
def test_compressed_request_of_openai_client_works(
    gateway: str, coding: str, encode: Callable[[bytes], bytes]
) -> None:
    http = openai.DefaultHttpxClient(transport=Compressing(coding, encode))
    with OpenAI(
        api_key="key-of-ann", base_url=f"{gateway}/v1", max_retries=0, http_client=http
    ) as client:
        answer = client.chat.completions.create(**ASKED)  # type: ignore[call-overload]
    assert answer.choices[0].message.content.split() == WORDS[:2]


def test_compressed_request_of_anthropic_client_works(gateway: str) -> None:
    http = httpx2.Client(transport=Compressing("zstd", zstandard.compress))
    asked: Any = ASKED | {"model": "wise-1"}
    with Anthropic(
        api_key="key-of-ann", base_url=gateway, max_retries=0, http_client=http
    ) as client:
        assert client.messages.create(**asked).usage.output_tokens == 2
        assert client.messages.count_tokens(model="wise-1", messages=asked["messages"])


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "nonsense"])
def test_other_codings_are_415(gateway: str, coding: str) -> None:
    response = post(gateway, BODY, coding)
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "gzip, deflate, zstd"
    assert response.json()["error"]["message"] == "unknown content coding"


@every_coding
def test_body_over_the_limit_after_decoding_is_413(
    gateway: str, coding: str, encode: Callable[[bytes], bytes]
) -> None:
    bomb = encode(BODY + b" " * (MAX_BYTES + 1 - len(BODY)))
    assert coding == "identity" or len(bomb) < 100_000
    assert post(gateway, bomb, coding).status_code == 413


@every_coding
def test_body_at_the_limit_after_decoding_is_read(
    gateway: str, coding: str, encode: Callable[[bytes], bytes]
) -> None:
    body = encode(BODY + b" " * (MAX_BYTES - len(BODY)))
    assert post(gateway, body, coding).status_code == 200


@every_coding
def test_broken_compressed_body_is_400(
    gateway: str, coding: str, encode: Callable[[bytes], bytes]
) -> None:
    for body in (b"\xff" * 100, encode(BODY)[:-30], b""):
        response = post(gateway, body, coding)
        assert response.status_code == 400
        assert response.json()["error"]["message"] == "the body is not a JSON object"


def test_zstd_body_with_a_huge_window_is_400(gateway: str) -> None:
    options = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    body = packer.compress(BODY) + packer.flush()
    assert post(gateway, body, "zstd").status_code == 400


def test_silent_model_gets_heartbeats_between_events(serve: Serve) -> None:
    first = b'data: {"choices": [{"delta": {"content": "one"}}]}\n\n'
    headers = {"content-type": "text/event-stream"}
    with Upstream() as provider:
        provider.any().chunks(first, 0.5, b"data: [DONE]\n\n", headers=headers)
        url = serve(SWIFT_URL=f"{provider.url}/v1", HEARTBEAT="0.1")
        response = post(url, json.dumps(ASKED | {"stream": True}).encode(), "identity")
    assert response.text.startswith(first.decode() + ":")
    assert response.text.endswith("\n\ndata: [DONE]\n\n")


def test_openai_client_ignores_heartbeats(serve: Serve) -> None:
    http = openai.DefaultHttpxClient(trust_env=False)
    url = f"{serve(HEARTBEAT='0.01')}/v1"
    with OpenAI(api_key="key-of-ann", base_url=url, max_retries=0, http_client=http) as client:
        chunks = list(client.chat.completions.create(**ASKED, stream=True))  # type: ignore[call-overload]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.split() == WORDS[:2]
