"""The gateway's Responses API and embeddings, called by the real `openai` client."""

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from asgi_upstream.testing import Upstream
from examples.llm_gateway.callers import CALLERS
from examples.llm_gateway.model import DIES_AFTER, WORDS
from tests.docs.llm_gateway.gateway import SWIFT, ModelUpstream, Serve
from tests.support.example_apps import until

ENDLESS = 1_000
INPUT = "Why stop the model?"


def connect(url: str, key: str = "key-of-ann") -> OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0, http_client=http)


@pytest.fixture
def ann(gateway: str) -> Iterator[OpenAI]:
    with connect(gateway) as client:
        yield client


def test_response_stream_arrives_token_by_token(ann: OpenAI, upstream: ModelUpstream) -> None:
    words: list[str] = []
    with ann.responses.create(
        model="swift-1", input=INPUT, stream=True, max_output_tokens=ENDLESS
    ) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                words.append(event.delta)
                if len(words) == 5:
                    break
        assert upstream.at_work(SWIFT) == 1
    assert words == [f"{word} " for word in WORDS[:5]]
    until(lambda: upstream.at_work(SWIFT) == 0)


def test_whole_response_arrives_with_its_usage(ann: OpenAI) -> None:
    response = ann.responses.create(model="swift-1", input=INPUT, max_output_tokens=5)
    assert response.output_text.split() == WORDS[:5]
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (4, 5)


def test_response_tokens_are_counted_for_the_caller(gateway: str, upstream: ModelUpstream) -> None:
    bob = CALLERS["key-of-bob"]
    with connect(gateway, "key-of-bob") as client:
        left = bob.tokens_left
        events = list(
            client.responses.create(model="swift-1", input=INPUT, stream=True, max_output_tokens=6)
        )
        assert events[-1].type == "response.completed"
        until(lambda: bob.tokens_left == left - 4 - 6)
        with pytest.raises(openai.APIError):  # no usage comes of this one
            list(client.responses.create(model="dies", input=INPUT, stream=True))
        until(lambda: bob.tokens_left == left - 10 - DIES_AFTER)


def test_broken_response_stream_ends_in_an_error(ann: OpenAI) -> None:
    with pytest.raises(openai.APIError, match="broke off in the middle") as broken:
        list(ann.responses.create(model="dies", input=INPUT, stream=True))
    assert broken.value.code == "502"
    assert not isinstance(broken.value, openai.APIConnectionError)


def test_late_response_stream_ends_in_an_error(serve: Serve, upstream: ModelUpstream) -> None:
    with (
        connect(serve(DEADLINE="1")) as client,
        pytest.raises(openai.APIError, match="took too long"),
    ):
        list(
            client.responses.create(
                model="swift-1", input=INPUT, stream=True, max_output_tokens=ENDLESS
            )
        )


def test_response_of_an_anthropic_model_is_not_found(ann: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="unknown model"):
        ann.responses.create(model="wise-1", input=INPUT)


def test_embeddings_are_forwarded(ann: OpenAI) -> None:
    made = ann.embeddings.create(model="swift-1", input="one three", encoding_format="float")
    assert made.data[0].embedding == [3.0, 5.0]


def test_embeddings_keep_keys_and_accounts_apart(serve: Serve) -> None:
    vector = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [1.0]}]}
    with Upstream() as provider:
        provider.any().json(vector, headers={"openai-organization": "the-gateway"})
        url = serve(SWIFT_URL=f"{provider.url}/v1", SWIFT_KEY="sk-swift")
        with connect(url) as plain:
            client = plain.with_options(
                default_headers={
                    "x-api-key": "key-of-ann",
                    "openai-organization": "ann-inc",
                    "cookie": "a=1",
                    "x-forwarded-for": "10.0.0.1",
                }
            )
            raw = client.embeddings.with_raw_response.create(
                model="swift-1", input="x", encoding_format="float"
            )
        assert raw.parse().data[0].embedding == [1.0]
        assert "openai-organization" not in raw.headers
        [sent] = provider.requests
        assert sent.headers["authorization"] == "Bearer sk-swift"
        for name in ("x-api-key", "openai-organization", "cookie", "x-forwarded-for"):
            assert name not in sent.headers
        assert b"ann" not in sent.raw


def test_embeddings_with_a_revoked_key_are_502(serve: Serve) -> None:
    with (
        connect(serve(SWIFT_KEY="sk-revoked", DEEP_KEY="sk-revoked")) as client,
        pytest.raises(openai.InternalServerError, match="does not accept") as refused,
    ):
        client.embeddings.create(model="swift-1", input="x", encoding_format="float")
    assert refused.value.status_code == 502
    assert "sk-" not in refused.value.response.text
