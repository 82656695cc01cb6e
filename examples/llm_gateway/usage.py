"""Counts the tokens of a response while it is relayed."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from asgi_upstream import UpstreamProtocolError

MAX_EVENT = 1024 * 1024  # bytes


@dataclass(eq=False)
class Usage:
    """The tokens of one response, as reported by the upstream or counted so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    async def counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Relay the events of a stream, and count their tokens."""
        async for event in events(chunks):
            self._count(data_of(event))
            yield event

    async def counted_and_hidden(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Relay the events without the usage, for a caller that did not ask for it."""
        async for event in events(chunks):
            data = data_of(event)
            self._count(data)
            if not data.get("usage") or data.get("choices"):
                yield event

    def count_whole(self, upstream: httpx.Response) -> None:
        """Read the usage of a response that is not a stream."""
        if not upstream.is_success:
            return
        try:
            self._count(upstream.json())
        except (
            ValueError,
            AttributeError,
            RecursionError,
        ) as exc:  # for example, a proxy's error page
            raise UpstreamProtocolError from exc

    def _count(self, data: dict[str, Any]) -> None:
        """Count the tokens. A response of unknown shape is relayed unchanged."""
        told, choices = data.get("usage"), data.get("choices")
        if isinstance(told, dict):
            self.prompt_tokens = number(told.get("prompt_tokens"), self.prompt_tokens)
            self.completion_tokens = number(told.get("completion_tokens"), self.completion_tokens)
        elif isinstance(choices, list):
            # A caller that disconnects gets no usage, so the chunks are counted.
            deltas = [choice.get("delta") for choice in choices if isinstance(choice, dict)]
            self.completion_tokens += sum(map(says, deltas))


def number(told: object, known: int) -> int:
    return told if type(told) is int and told >= 0 else known


def says(delta: object) -> bool:
    """Whether a chunk has content: words, a tool call or reasoning."""
    return isinstance(delta, dict) and any(v for name, v in delta.items() if name != "role")


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
