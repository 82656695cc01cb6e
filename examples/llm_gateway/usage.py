"""Counts the tokens of a response while it is relayed."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from asgi_upstream import UpstreamProtocolError

MAX_EVENT = 8 * 1024 * 1024  # bytes; the last event of a response may repeat all of it
# OpenAI's names, in both its APIs, and Anthropic's, which counts cached tokens apart.
PROMPT = (
    "prompt_tokens",
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)
COMPLETION = ("completion_tokens", "output_tokens")


@dataclass(eq=False)
class Usage:
    """The tokens of one response, as reported by the upstream or counted so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    async def count(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Relay the events of a stream, and count their tokens."""
        async for event in events(chunks):
            self.count_object(data_of(event))
            yield event

    async def count_and_hide(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Relay the events without the usage, for a caller that did not ask for it."""
        async for event in events(chunks):
            data = data_of(event)
            self.count_object(data)
            if not data.get("usage") or data.get("choices"):
                yield event

    def count_whole(self, upstream: httpx.Response) -> None:
        """Read the usage of a response that is not a stream."""
        if not upstream.is_success:
            return
        try:
            self.count_object(upstream.json())
        except (ValueError, AttributeError, RecursionError) as exc:  # a proxy's error page
            raise UpstreamProtocolError from exc

    def count_object(self, data: dict[str, Any]) -> None:
        """Count the tokens. A response of unknown shape is relayed unchanged."""
        # Usage is here in chat completions, and also deeper in events of the other APIs.
        for place in (data, data.get("response"), data.get("message")):
            if isinstance(place, dict) and isinstance(usage := place.get("usage"), dict):
                self.prompt_tokens = total(usage, PROMPT, self.prompt_tokens)
                self.completion_tokens = total(usage, COMPLETION, self.completion_tokens)
                return
        # A caller that disconnects gets no usage, so the chunks are counted.
        self.completion_tokens += count_chunks(data)


def total(usage: dict[str, Any], names: tuple[str, ...], known: int) -> int:
    """Return the sum of the counts with these names, or what is known if there are none."""
    counts = [count for name in names if type(count := usage.get(name)) is int and count >= 0]
    return sum(counts) if counts else known


def count_chunks(data: dict[str, Any]) -> int:
    """Return the number of chunks with content: words, a tool call or reasoning."""
    kind, choices = data.get("type"), data.get("choices")
    if isinstance(kind, str):
        return int(kind == "content_block_delta" or kind.endswith(".delta"))
    if not isinstance(choices, list):
        return 0
    deltas = [choice.get("delta") for choice in choices if isinstance(choice, dict)]
    return sum(isinstance(delta, dict) and has_content(delta) for delta in deltas)


def has_content(delta: dict[str, Any]) -> bool:
    return any(value for name, value in delta.items() if name != "role")


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield each event as soon as it is complete. Chunks may split or join events."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            yield event + b"\n\n"
        if len(rest) > MAX_EVENT:
            raise UpstreamProtocolError
    if rest:
        yield rest


def data_of(event: bytes) -> dict[str, Any]:
    """Return the object in an event, or an empty one."""
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    try:
        data = json.loads(b"\n".join(lines))
    except (ValueError, RecursionError):  # [DONE], a comment, or the body of an error
        return {}
    return data if isinstance(data, dict) else {}
