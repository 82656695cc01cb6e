"""How many tokens an answer took, read from it while it passes."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from asgi_upstream import UpstreamProtocolError


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
        except (ValueError, AttributeError) as exc:  # a page of a proxy's, say
            raise UpstreamProtocolError from exc

    def _count(self, data: dict[str, Any]) -> None:
        if told := data.get("usage"):
            self.prompt_tokens = told.get("prompt_tokens", 0)
            self.completion_tokens = told.get("completion_tokens", 0)
        else:  # nobody is told the usage who leaves before the end, so the parts are counted
            deltas = [choice.get("delta") for choice in data.get("choices") or ()]
            self.completion_tokens += sum(bool(delta and says(delta)) for delta in deltas)


def says(delta: dict[str, Any]) -> bool:
    """Whether there is something in it: words, a call of a tool, what a model thinks."""
    return any(value for name, value in delta.items() if name != "role")


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Each event as soon as it is whole. It may lie across many chunks, and many in one."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            yield event + b"\n\n"
    if rest:
        yield rest


def data_of(event: bytes) -> dict[str, Any]:
    """What is in an event; nothing in the last one, and in what is none."""
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
    try:
        data = json.loads(b"\n".join(lines))
    except ValueError:  # [DONE], a comment, or the body of an error
        return {}
    return data if isinstance(data, dict) else {}
