"""The model behind the server in upstream.py. It repeats the words of a text, at its own pace."""

import itertools
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio
from pydantic import BaseModel

SECONDS_A_TOKEN = {
    **{"swift-1": 0.02, "deep-1": 0.08, "dies": 0.05, "slow": 0.3, "refuses": 0.0},
    **{"wise-1": 0.02, "wise-dies": 0.05},
}
THINKS = {"deep-1": 0.4, "slow": 4.0}  # seconds before the first token
DIES_AFTER = 12  # tokens
TEXT = (
    "A gateway holds the keys, knows its callers and passes each word on as it comes. When a "
    "caller disconnects, the model behind it should stop too: its next words would be unread, "
    "and somebody pays for it. So the exchange with the model lives inside the answer to the "
    "caller, and ends with it, whoever ends it first. "
)
WORDS = TEXT.split(" ")[:-1]


class StreamOptions(BaseModel):
    include_usage: bool = False


class Asked(BaseModel):
    """The parts that this server reads of a request, in any of its APIs."""

    model: str
    messages: list[dict[str, Any]] = []
    input: str | list[dict[str, Any]] = ""
    max_tokens: int = len(WORDS)
    max_output_tokens: int | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def count(self) -> int:
        """The number of tokens that the answer has."""
        return self.max_output_tokens or self.max_tokens

    @property
    def prompt_tokens(self) -> int:
        messages = self.messages or (self.input if isinstance(self.input, list) else [])
        texts = [str(message.get("content")) for message in messages] or [str(self.input)]
        return sum(len(text.split()) for text in texts)


made: Counter[str] = Counter()  # tokens of each account
at_work: Counter[str] = Counter()  # open responses of each account


async def tokens(asked: Asked, account: str) -> AsyncIterator[str]:
    """Yield the words, and count each of them."""
    at_work[account] += 1
    try:
        for number, word in enumerate(itertools.islice(itertools.cycle(WORDS), asked.count)):
            if asked.model.endswith("dies") and number == DIES_AFTER:
                raise RuntimeError("this model dies in the middle of its answer, as asked")
            await anyio.sleep(SECONDS_A_TOKEN[asked.model])
            made[account] += 1
            yield f"{word} "
    finally:
        at_work[account] -= 1
