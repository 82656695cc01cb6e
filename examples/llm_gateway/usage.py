"""How many tokens an answer took, read from it while it passes."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from asgi_upstream import UpstreamProtocolError

MOST_EVENT = 1024 * 1024  # bytes


@dataclass(eq=False)
class Usage:
    """Of one answer: what the upstream said, and what has come so far where it said nothing."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    async def counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The events of a stream as they come, and their usage counted."""
        async for event in events(chunks):
            self._count(data_of(event))
            yield event

    async def counted_and_hidden(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same without the event of the usage, for a caller who has not asked for it."""
        async for event in events(chunks):
            data = data_of(event)
            self._count(data)
            if not data.get("usage") or data.get("choices"):
                yield event

    def count_whole(self, upstream: httpx.Response) -> None:
        """The usage of an answer that did not come as a stream."""
        if not upstream.is_success:
            return
        try:
            self._count(upstream.json())
        except (ValueError, AttributeError, RecursionError) as exc:  # a page of a proxy's, say
            raise UpstreamProtocolError from exc

    def _count(self, data: dict[str, Any]) -> None:
        """Counts what is there, of whatever shape: an odd answer is passed on as it is."""
        told, choices = data.get("usage"), data.get("choices")
        if isinstance(told, dict):
            self.prompt_tokens = number(told.get("prompt_tokens"), self.prompt_tokens)
            self.completion_tokens = number(told.get("completion_tokens"), self.completion_tokens)
        elif isinstance(choices, list):
            # Nobody is told the usage who leaves before the end, so the parts are counted.
            deltas = [choice.get("delta") for choice in choices if isinstance(choice, dict)]
            self.completion_tokens += sum(map(says, deltas))


def number(told: object, known: int) -> int:
    return told if type(told) is int and told >= 0 else known


def says(delta: object) -> bool:
    """Whether there is something in it: words, a call of a tool, what a model thinks."""
    return isinstance(delta, dict) and any(v for name, v in delta.items() if name != "role")


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Each event as soon as it is whole. It may lie across many chunks, and many in one."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            yield event + b"\n\n"
        if len(rest) > MOST_EVENT:
            raise UpstreamProtocolError
    if rest:
        yield rest


def data_of(event: bytes) -> dict[str, Any]:
    """What is in an event; nothing in the last one, and in what is none."""
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    try:
        data = json.loads(b"\n".join(lines))
    except (ValueError, RecursionError):  # [DONE], a comment, or the body of an error
        return {}
    return data if isinstance(data, dict) else {}
