"""The gateway, called by the real `openai` client."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI, Stream
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from prometheus_client.parser import text_string_to_metric_families

from asgi_upstream import UpstreamProtocolError
from asgi_upstream.testing import Upstream
from examples.llm_gateway.callers import CALLERS
from examples.llm_gateway.model import DIES_AFTER, THINKS, WORDS
from examples.llm_gateway.upstream import KEYS
from examples.llm_gateway.usage import Usage
from tests.docs.llm_gateway.gateway import DEEP, SWIFT, ModelUpstream, Serve
from tests.support.example_apps import until
from tests.support.pages import blocks
from tests.support.servers import free_port

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why stop the model?"}]
ENDLESS = 1_000  # tokens, which take twenty seconds: longer than any test waits
Call = Callable[..., OpenAI]


@pytest.fixture
def call(gateway: str) -> Iterator[Call]:
    """An OpenAI client, with the key of ann unless another is given."""
    with ExitStack() as stack:

        def client(key: str = "key-of-ann", url: str = gateway) -> OpenAI:
            http = openai.DefaultHttpxClient(trust_env=False)
            made = OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0, http_client=http)
            return stack.enter_context(made)

        yield client


@pytest.fixture
def ann(call: Call) -> OpenAI:
    return call()


def streamed(client: OpenAI, model: str = "swift-1", **options: Any) -> Stream[ChatCompletionChunk]:
    stream: Stream[ChatCompletionChunk] = client.chat.completions.create(
        model=model, messages=MESSAGES, stream=True, **options
    )
    return stream


def text_of(chunk: ChatCompletionChunk) -> str:
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


def exchanges(url: str, key: str = "key-of-ann") -> list[dict[str, Any]]:
    headers = {"authorization": f"Bearer {key}"}
    listed: list[dict[str, Any]] = httpx.get(
        f"{url}/exchanges", headers=headers, trust_env=False
    ).json()
    return listed


def newest_ended(url: str) -> dict[str, Any]:
    """The caller's last exchange, once it is over."""
    until(lambda: exchanges(url)[0]["outcome"] is not None)
    return exchanges(url)[0]


# Answers


@pytest.mark.parametrize("usage", [False, True], ids=["without-usage", "with-usage"])
def test_token_arrives_while_the_upstream_is_still_at_work(
    ann: OpenAI, upstream: ModelUpstream, usage: bool
) -> None:
    before = upstream.made(SWIFT)
    options = {"include_usage": usage}
    with streamed(ann, max_tokens=ENDLESS, stream_options=options) as stream:
        for number, chunk in enumerate(stream):
            assert text_of(chunk) == f"{WORDS[number]} "
            if number == 5:
                break
        assert upstream.at_work(SWIFT) == 1
        assert upstream.made(SWIFT) - before < ENDLESS


def test_stream_arrives_whole_and_ends_with_stop(ann: OpenAI) -> None:
    chunks = list(streamed(ann, max_tokens=10))
    assert "".join(map(text_of, chunks)).split() == WORDS[:10]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_whole_completion_arrives_with_its_usage(ann: OpenAI) -> None:
    answer = ann.chat.completions.create(model="swift-1", messages=MESSAGES, max_tokens=5)
    assert (answer.choices[0].message.content or "").split() == WORDS[:5]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 5)


def test_model_chooses_the_upstream_and_its_key(ann: OpenAI, upstream: ModelUpstream) -> None:
    before = upstream.made(SWIFT), upstream.made(DEEP)
    list(streamed(ann, "swift-1", max_tokens=3))
    assert (upstream.made(SWIFT), upstream.made(DEEP)) == (before[0] + 3, before[1])
    list(streamed(ann, "deep-1", max_tokens=2))
    assert (upstream.made(SWIFT), upstream.made(DEEP)) == (before[0] + 3, before[1] + 2)


def test_models_of_all_openai_upstreams_are_listed(ann: OpenAI) -> None:
    owners = {model.id: model.owned_by for model in ann.models.list()}
    assert (owners["swift-1"], owners["deep-1"]) == ("swift", "deep")


# Stop


def test_upstream_stops_when_the_caller_closes_a_stream(
    ann: OpenAI, gateway: str, upstream: ModelUpstream
) -> None:
    before = upstream.made(SWIFT)
    stream = streamed(ann, max_tokens=ENDLESS)
    for number, _ in enumerate(stream):
        if number == 5:
            break
    stream.close()
    until(lambda: upstream.at_work(SWIFT) == 0)
    assert 6 <= upstream.made(SWIFT) - before < ENDLESS
    ended = newest_ended(gateway)
    assert ended["outcome"] == "caller_disconnected_mid_body"
    assert 6 <= ended["tokens"] <= upstream.made(SWIFT) - before


def test_upstream_stops_when_a_whole_completion_is_abandoned(
    call: Call, gateway: str, upstream: ModelUpstream
) -> None:
    before = upstream.made(SWIFT)
    with pytest.raises(openai.APITimeoutError):
        call().with_options(timeout=5).chat.completions.create(
            model="swift-1", messages=MESSAGES, max_tokens=ENDLESS
        )
    until(lambda: upstream.at_work(SWIFT) == 0)
    assert 0 < upstream.made(SWIFT) - before < ENDLESS
    assert newest_ended(gateway)["outcome"] == "caller_disconnected_before_headers"


def test_disconnect_before_the_first_token_costs_no_tokens(
    call: Call, gateway: str, upstream: ModelUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(THINKS, "slow", 3)
    before = upstream.made(SWIFT)
    with pytest.raises(openai.APITimeoutError):
        streamed(call().with_options(timeout=1.5), "slow")
    assert newest_ended(gateway)["outcome"] == "caller_disconnected_before_headers"
    time.sleep(3)  # in which it would make some
    assert upstream.made(SWIFT) == before


def test_upstream_stops_when_an_async_caller_is_cancelled(
    gateway: str, upstream: ModelUpstream
) -> None:
    async def read(begun: asyncio.Event) -> None:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        url = f"{gateway}/v1"
        async with AsyncOpenAI(api_key="key-of-ann", base_url=url, http_client=http) as client:
            stream = await client.chat.completions.create(
                model="deep-1", messages=MESSAGES, stream=True, max_tokens=ENDLESS
            )
            async for _ in stream:
                begun.set()

    async def cancelled() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(read(begun))
        await asyncio.wait_for(begun.wait(), 60)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    until(lambda: upstream.at_work(DEEP) == 0)


# Errors


@pytest.mark.parametrize("key", ["key-of-nobody", next(iter(KEYS))])
def test_unknown_key_is_an_authentication_error(call: Call, key: str) -> None:
    with pytest.raises(openai.AuthenticationError, match="unknown key"):
        streamed(call(key))
    with pytest.raises(openai.AuthenticationError):
        call(key).models.list()


@pytest.mark.parametrize("path", ["/v1/models", "/exchanges"])
def test_request_without_a_key_is_401(gateway: str, path: str) -> None:
    response = httpx.get(gateway + path, trust_env=False)
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")


def test_unknown_model_is_not_found(ann: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="unknown model"):
        streamed(ann, "gpt-1")


def test_refusal_of_the_upstream_is_relayed(ann: OpenAI) -> None:
    for stream in (True, False):
        with pytest.raises(openai.RateLimitError, match="overloaded") as refused:
            ann.chat.completions.create(model="refuses", messages=MESSAGES, stream=stream)
        assert refused.value.response.headers["retry-after"] == "1"


def test_validation_error_of_the_upstream_is_relayed(ann: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens: "):
        streamed(ann, extra_body={"max_tokens": "many"})


def test_broken_chat_stream_ends_in_an_error_after_its_tokens(ann: OpenAI, gateway: str) -> None:
    words: list[str] = []
    with pytest.raises(openai.APIError, match="broke off in the middle") as died:
        words.extend(map(text_of, streamed(ann, "dies")))
    assert not isinstance(died.value, openai.APIConnectionError)
    assert died.value.code == "502"
    listed = newest_ended(gateway)
    assert (listed["outcome"], listed["tokens"]) == ("body_failed", DIES_AFTER)


def test_upstream_error_before_the_answer_is_relayed(ann: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        ann.chat.completions.create(model="dies", messages=MESSAGES)
    assert failed.value.status_code == 500


def test_upstream_that_is_down_is_502_and_the_other_answers(call: Call, serve: Serve) -> None:
    client = call(url=serve(SWIFT_URL=f"http://127.0.0.1:{free_port()}/v1"))
    with pytest.raises(openai.InternalServerError) as failed:
        streamed(client, "swift-1")
    assert failed.value.status_code == 502
    assert "127.0.0.1" not in failed.value.response.text
    assert len(list(streamed(client, "deep-1", max_tokens=1))) == 2


def test_late_chat_stream_ends_in_an_error_and_stops_the_model(
    call: Call, serve: Serve, upstream: ModelUpstream
) -> None:
    client = call(url=serve(DEADLINE="1"))
    words: list[str] = []
    with pytest.raises(openai.APIError, match="took too long") as late:
        words.extend(map(text_of, streamed(client, max_tokens=ENDLESS)))
    assert (late.value.code, words[:3]) == ("504", [f"{word} " for word in WORDS[:3]])
    until(lambda: upstream.at_work(SWIFT) == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_deadline_before_the_first_token_is_504(call: Call, serve: Serve, stream: bool) -> None:
    client = call(url=serve(DEADLINE="1"))
    with pytest.raises(openai.InternalServerError) as late:
        client.chat.completions.create(model="slow", messages=MESSAGES, stream=stream)
    assert late.value.status_code == 504


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"model": 1}', 404),
        (b" " * 10_000_001, 413),
        (b"[" * 100_000, 400),
        (b'{"model": "swift-1", "stream": true, "temperature": NaN}', 400),
        (b'{"model": "swift-1", "user": "\\ud800"}', 400),
        (b'{"model": "swift-1", "stream": true, "stream_options": ["include_usage"]}', 400),
    ],
    ids=["cut", "list", "model", "long", "deep", "nan", "surrogate", "options"],
)
def test_invalid_request_is_an_error_in_openai_format(
    gateway: str, body: bytes, status: int
) -> None:
    headers = {"authorization": "Bearer key-of-ann"}
    url = f"{gateway}/v1/chat/completions"
    response = httpx.post(url, content=body, headers=headers, trust_env=False)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    until(lambda: all(listed["outcome"] for listed in exchanges(gateway)))  # none is left live


def test_disconnect_during_the_request_logs_no_failure(
    gateway: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = httpx.URL(gateway)
    with socket.create_connection((url.host, url.port or 80), timeout=60) as caller:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-length: 9\r\n"
        caller.sendall(f"{head}authorization: Bearer key-of-ann\r\n\r\n{{".encode())
        until(lambda: CALLERS["key-of-ann"].at_once == 1)
    until(lambda: CALLERS["key-of-ann"].at_once == 0)
    httpx.get(gateway, trust_env=False)  # by now the one before it is through
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("stream", [True, False])
def test_html_page_of_the_upstream_is_502(call: Call, serve: Serve, stream: bool) -> None:
    with Upstream() as proxy:
        proxy.any().text("<html>all is well</html>", headers={"content-type": "text/html"})
        client = call(url=serve(SWIFT_URL=f"{proxy.url}/v1"))
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(model="swift-1", messages=MESSAGES, stream=stream)
    assert failed.value.status_code == 502


# Keys


def test_upstream_keys_never_reach_a_caller_or_the_log(
    gateway: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("", "httpx", "httpcore.http11"):  # others may have set theirs
        caplog.set_level(logging.DEBUG, name)
    wrong = serve(SWIFT_KEY="sk-revoked", DEEP_KEY="sk-revoked")
    headers = {"authorization": "Bearer key-of-ann"}
    for url, model in [(wrong, "swift-1"), *((gateway, m) for m in ("deep-1", "dies", "refuses"))]:
        for stream in (True, False):
            asked = {"model": model, "messages": MESSAGES, "stream": stream, "max_tokens": 2}
            response = httpx.post(
                f"{url}/v1/chat/completions", json=asked, headers=headers, trust_env=False
            )
            seen = json.dumps([response.headers.multi_items(), response.text])
            assert "sk-" not in seen
            assert "set-cookie" not in response.headers
            assert "openai-organization" not in response.headers
            assert url is gateway or response.status_code == 502
    assert {"httpx", "httpcore.http11"} <= {record.name for record in caplog.records}
    assert "sk-" not in caplog.text
    assert "key-of-ann" not in caplog.text


@pytest.mark.parametrize("status", [401, 403])
def test_upstream_error_that_quotes_the_key_is_hidden(
    call: Call, serve: Serve, status: int
) -> None:
    with Upstream() as refusing:
        refusing.any().json({"error": {"message": "sk-cited is no key"}}, status=status)
        url = serve(SWIFT_URL=f"{refusing.url}/v1", SWIFT_KEY="sk-cited")
        for stream in (True, False):
            with pytest.raises(openai.InternalServerError, match="does not accept") as refused:
                call(url=url).chat.completions.create(
                    model="swift-1", messages=MESSAGES, stream=stream
                )
            assert refused.value.status_code == 502
            assert "sk-" not in refused.value.response.text
        assert {sent.headers["authorization"] for sent in refusing.requests} == {"Bearer sk-cited"}


def test_caller_key_is_compared_in_constant_time(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr("examples.llm_gateway.callers.secrets.compare_digest", compare_digest)
    with pytest.raises(openai.AuthenticationError):
        call("key-of-ann").models.list()
    assert compared == [(known.encode(), b"key-of-ann") for known in CALLERS]


# Usage, limits, metrics


def test_usage_is_in_the_stream_only_if_the_caller_asks(
    ann: OpenAI,
) -> None:
    options = {"include_usage": True}
    chunks = list(streamed(ann, max_tokens=4, stream_options=options))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 8
    chunks = list(streamed(ann, max_tokens=4))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_tokens_are_counted_for_the_caller(call: Call, gateway: str) -> None:
    def counted(model: str, kind: str) -> float:
        return metric(gateway, "llm_gateway_tokens_total", caller="bob", model=model, kind=kind)

    bob = call("key-of-bob")
    left = CALLERS["key-of-bob"].tokens_left
    before = counted("swift-1", "completion"), counted("swift-1", "prompt")
    list(streamed(bob, max_tokens=7))
    bob.chat.completions.create(model="swift-1", messages=MESSAGES, max_tokens=5)
    until(lambda: counted("swift-1", "completion") == before[0] + 12)
    assert counted("swift-1", "prompt") == before[1] + 8
    assert CALLERS["key-of-bob"].tokens_left == left - 20
    with pytest.raises(openai.APIError):  # no usage comes of this one
        list(streamed(bob, "dies"))
    until(lambda: counted("dies", "completion") == DIES_AFTER)


def test_concurrent_requests_are_limited_per_caller(call: Call, upstream: ModelUpstream) -> None:
    ann, bob = call(), call("key-of-bob")
    with streamed(ann, max_tokens=ENDLESS), streamed(ann, max_tokens=ENDLESS):
        with pytest.raises(openai.RateLimitError, match="too many concurrent requests"):
            streamed(ann)
        assert len(list(streamed(bob, max_tokens=1))) == 2
    until(lambda: upstream.at_work(SWIFT) == 0)
    until(lambda: CALLERS["key-of-ann"].at_once == 0)
    for model in ("dies", "dies", "dies"):  # more often than there are places
        with pytest.raises(openai.APIError, match="broke off"):
            list(streamed(ann, model))
        until(lambda: CALLERS["key-of-ann"].at_once == 0)


def test_caller_without_tokens_is_429(ann: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CALLERS["key-of-ann"], "tokens_left", 5)
    list(streamed(ann, max_tokens=3))  # 4 of the prompt, and these
    until(lambda: CALLERS["key-of-ann"].tokens_left < 0)
    with pytest.raises(openai.RateLimitError, match="no tokens left"):
        streamed(ann)


def test_metrics_count_outcomes_per_upstream(ann: OpenAI, gateway: str) -> None:
    def ended(outcome: str) -> float:
        return metric(gateway, "asgi_upstream_exchanges_total", client="deep", outcome=outcome)

    before = ended("body_failed"), ended("completed")
    with pytest.raises(openai.APIError, match="broke off"):
        list(streamed(ann, "dies"))
    # Of a stream this client closes the connection at its last event, and may be one who left.
    ann.chat.completions.create(model="deep-1", messages=MESSAGES, max_tokens=1)
    # More than that, where an exchange of the test before is counted late.
    until(lambda: ended("body_failed") > before[0] and ended("completed") > before[1])


def test_caller_sees_only_its_own_exchanges_live(call: Call, gateway: str) -> None:
    with streamed(call(), "deep-1", max_tokens=ENDLESS) as stream:
        next(stream)
        live = exchanges(gateway)[0]
        assert (live["model"], live["outcome"], live["tokens"] > 0) == ("deep-1", None, True)
        numbers = [listed["number"] for listed in exchanges(gateway, "key-of-bob")]
        assert live["number"] not in numbers
    assert newest_ended(gateway)["number"] == live["number"]


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of all samples that have the labels."""
    text = httpx.get(f"{url}/metrics/", trust_env=False).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_usage_is_read_from_events_cut_anywhere(size: int, end: bytes) -> None:
    piece = b'data: {"choices": [{"delta": {"content": "one"}}], "usage": null}'
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 9}}'
    events = [b": a comment", piece, piece, usage, b"data: [DONE]"]
    body = b"".join(event + end for event in events) + b"and what is no event"

    async def passed(*, hidden: bool, until_byte: int | None = None) -> tuple[bytes, Usage]:
        async def chunks() -> Any:
            sent = body[:until_byte]
            for start in range(0, len(sent), size):
                yield sent[start : start + size]

        counted = Usage()
        transform = counted.count_and_hide if hidden else counted.count
        return b"".join([event async for event in transform(chunks())]), counted

    shown, counted = asyncio.run(passed(hidden=False))
    assert shown == body.replace(b"\r\n", b"\n")
    assert (counted.prompt_tokens, counted.completion_tokens) == (4, 9)
    shown, counted = asyncio.run(passed(hidden=True))
    assert shown == body.replace(b"\r\n", b"\n").replace(usage + b"\n\n", b"")
    assert (counted.prompt_tokens, counted.completion_tokens) == (4, 9)
    cut = body.index(usage)
    _, counted = asyncio.run(passed(hidden=False, until_byte=cut))
    assert (counted.prompt_tokens, counted.completion_tokens) == (0, 2)


@pytest.mark.parametrize(
    ("delta", "tokens"),
    [
        ({"role": "assistant", "content": ""}, 0),
        ({"content": "word"}, 1),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, 1),
        ({"content": None, "reasoning_content": "thus"}, 1),
        ({}, 0),
    ],
)
def test_chunk_with_content_counts_as_a_token_without_usage(
    delta: dict[str, Any], tokens: int
) -> None:
    async def chunks() -> Any:
        yield b"data: %s\n\n" % json.dumps({"choices": [{"delta": delta}]}).encode()

    async def counted() -> int:
        usage = Usage()
        assert [event async for event in usage.count_and_hide(chunks())]
        return usage.completion_tokens

    assert asyncio.run(counted()) == tokens


@pytest.mark.parametrize(
    "odd",
    [
        b'{"choices": [], "usage": "many"}',
        b'{"choices": [], "usage": {"prompt_tokens": null, "completion_tokens": "3"}}',
        b'{"choices": [], "usage": {"prompt_tokens": -100, "completion_tokens": 1.5}}',
        b'{"choices": ["x"]}',
        b'{"choices": {"a": 1}}',
        b'{"choices": 3}',
        b'{"choices": [{"delta": "word"}]}',
        b"[1]",
        b"null",
        b"[" * 200_000,
    ],
)
def test_odd_event_is_relayed_and_counts_nothing(odd: bytes) -> None:
    piece = b'data: {"choices": [{"delta": {"content": "one"}}]}\n\n'
    body = piece + b"data: " + odd + b"\n\n" + piece

    async def chunks() -> Any:
        yield body

    async def counted() -> Usage:
        usage = Usage()
        assert b"".join([event async for event in usage.count(chunks())]) == body
        return usage

    usage = asyncio.run(counted())
    assert (usage.prompt_tokens, usage.completion_tokens) == (0, 2)


def test_event_without_end_fails_before_it_fills_memory() -> None:
    async def chunks() -> Any:
        while True:
            yield b"data: " + b"x" * 65536

    async def read() -> None:
        async for _ in Usage().count(chunks()):
            pass

    with pytest.raises(UpstreamProtocolError):
        asyncio.run(read())


def test_client_of_the_docs_page_prints_an_answer(
    gateway: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = next(b.code for b in blocks("docs/llm-gateway.md") if "from openai" in b.code)
    assert "deep-1" in code
    code = code.replace("http://127.0.0.1:8000", gateway).replace("deep-1", "swift-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")
        names: dict[str, Any] = {}
        exec(code, names)
        names["client"].close()
    assert len(capsys.readouterr().out.split()) > 10
