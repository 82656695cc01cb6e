"""The gateway, called by the real `anthropic` client."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types import MessageParam, TextDelta

from asgi_upstream.testing import Upstream
from examples.llm_gateway.callers import CALLERS
from examples.llm_gateway.model import DIES_AFTER, WORDS
from tests.docs.llm_gateway.gateway import WISE, ModelUpstream, Serve
from tests.support.example_apps import until

PROMPT: list[MessageParam] = [{"role": "user", "content": "Why stop the model?"}]
ENDLESS = 1_000


def connect(url: str, **options: Any) -> Anthropic:
    http = anthropic.DefaultHttpxClient(trust_env=False)
    options = {"api_key": "key-of-ann", **options}
    return Anthropic(base_url=url, max_retries=0, http_client=http, **options)


@pytest.fixture
def ann(gateway: str) -> Iterator[Anthropic]:
    with connect(gateway) as client:
        yield client


def ask(client: Anthropic, model: str = "wise-1", max_tokens: int = 10) -> str:
    with client.messages.stream(model=model, messages=PROMPT, max_tokens=max_tokens) as stream:
        return stream.get_final_text()


def test_message_stream_arrives_token_by_token(ann: Anthropic, upstream: ModelUpstream) -> None:
    words: list[str] = []
    with ann.messages.create(
        model="wise-1", messages=PROMPT, max_tokens=ENDLESS, stream=True
    ) as stream:
        for event in stream:
            if event.type == "content_block_delta" and isinstance(event.delta, TextDelta):
                words.append(event.delta.text)
                if len(words) == 5:
                    break
        assert upstream.at_work(WISE) == 1
    assert words == [f"{word} " for word in WORDS[:5]]
    until(lambda: upstream.at_work(WISE) == 0)
    assert upstream.made(WISE) < ENDLESS


def test_message_stream_ends_with_its_usage(ann: Anthropic) -> None:
    with ann.messages.stream(model="wise-1", messages=PROMPT, max_tokens=7) as stream:
        message = stream.get_final_message()
    assert (message.usage.input_tokens, message.usage.output_tokens) == (4, 7)
    assert message.stop_reason == "end_turn"


def test_whole_message_arrives_with_its_usage(ann: Anthropic) -> None:
    message = ann.messages.create(model="wise-1", messages=PROMPT, max_tokens=5)
    assert message.content[0].type == "text"
    assert message.content[0].text.split() == WORDS[:5]
    assert message.usage.output_tokens == 5


def test_message_tokens_are_counted_for_the_caller(gateway: str, upstream: ModelUpstream) -> None:
    bob = CALLERS["key-of-bob"]
    with connect(gateway, api_key="key-of-bob") as client:
        left = bob.tokens_left
        ask(client, max_tokens=6)
        until(lambda: bob.tokens_left == left - 4 - 6)
        client.messages.create(model="wise-1", messages=PROMPT, max_tokens=5)
        until(lambda: bob.tokens_left == left - 10 - 9)
        with pytest.raises(anthropic.APIStatusError):  # no usage comes of its completion
            ask(client, "wise-dies", ENDLESS)
        until(lambda: bob.tokens_left == left - 19 - 4 - DIES_AFTER)


def test_bearer_token_works_in_place_of_the_api_key(gateway: str, upstream: ModelUpstream) -> None:
    with connect(gateway, api_key=None, auth_token="key-of-ann") as client:
        assert ask(client, max_tokens=2).split() == WORDS[:2]


def test_wrong_key_is_an_authentication_error(gateway: str) -> None:
    with (
        connect(gateway, api_key="key-of-nobody") as client,
        pytest.raises(anthropic.AuthenticationError) as refused,
    ):
        ask(client)
    assert refused.value.body == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "unknown key"},
    }


def test_model_of_the_other_api_is_not_found(ann: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="unknown model"):
        ask(ann, "swift-1")


def test_broken_message_stream_ends_in_an_error(ann: Anthropic) -> None:
    words: list[str] = []
    with (
        pytest.raises(anthropic.APIStatusError, match="broke off in the middle"),
        ann.messages.stream(model="wise-dies", messages=PROMPT, max_tokens=ENDLESS) as stream,
    ):
        words.extend(stream.text_stream)
    assert "".join(words).split() == WORDS[:DIES_AFTER]


def test_late_message_stream_ends_in_an_error(serve: Serve, upstream: ModelUpstream) -> None:
    with (
        connect(serve(DEADLINE="1")) as client,
        pytest.raises(anthropic.APIStatusError, match="took too long"),
    ):
        ask(client, max_tokens=ENDLESS)


def test_models_for_anthropic_clients_are_their_own(ann: Anthropic) -> None:
    assert {model.id for model in ann.models.list()} == {"wise-1", "wise-dies"}


def test_count_tokens_counts_the_prompt(ann: Anthropic) -> None:
    counted = ann.messages.count_tokens(model="wise-1", messages=PROMPT)
    assert counted.input_tokens == 4


def test_version_and_beta_headers_reach_the_upstream(serve: Serve) -> None:
    message = {"id": "m", "type": "message", "content": [], "usage": {}}
    with Upstream() as provider:
        provider.any().json(message)
        with connect(
            serve(WISE_URL=f"{provider.url}/v1", WISE_KEY="sk-wise"),
            default_headers={"anthropic-beta": "a-1", "cookie": "a=1"},
        ) as client:
            client.messages.create(model="wise-1", messages=PROMPT, max_tokens=5)
            client.messages.count_tokens(model="wise-1", messages=PROMPT)
            version = client.default_headers["anthropic-version"]
            sent = [request.headers for request in provider.requests]
    assert [headers["anthropic-version"] for headers in sent] == [version] * 2
    assert [headers["anthropic-beta"] for headers in sent] == ["a-1"] * 2
    assert [headers["x-api-key"] for headers in sent] == ["sk-wise"] * 2
    for headers in sent:
        assert not {"authorization", "cookie", "x-forwarded-for"} & set(headers)
    assert "key-of-ann" not in str(sent)
