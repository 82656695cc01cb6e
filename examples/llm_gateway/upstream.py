"""A small OpenAI-compatible server without a model or a network. Words of a text are its tokens.

    uvicorn examples.llm_gateway.upstream:app --port 9001
    curl http://127.0.0.1:9001/made

It bills whoever's key a request has, as a real one does: /made tells how many tokens it has made
for each, and how many answers it is at. Some of its models do what real ones do on bad days.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials
from pydantic import BaseModel

KEYS = {"sk-of-the-gateway-at-swift": "swift", "sk-of-the-gateway-at-deep": "deep"}
SECONDS_A_TOKEN = {"swift-1": 0.02, "deep-1": 0.08, "dies": 0.05, "slow": 0.3, "refuses": 0.0}
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
    """The parts of a completion request that this server reads."""

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int = len(WORDS)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def prompt_tokens(self) -> int:
        return sum(len(str(message.get("content")).split()) for message in self.messages)

    def usage(self, completion_tokens: int) -> dict[str, int]:
        prompt = self.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt + completion_tokens,
        }


app = FastAPI()
made: Counter[str] = Counter()
at_work: Counter[str] = Counter()
Key = Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]


async def account_of(key: Key) -> str:
    """Return the account. Answer 401 for an unknown key and quote it, like real servers."""
    try:
        return KEYS[key.credentials]
    except KeyError:
        raise HTTPException(401, f"Incorrect API key provided: {key.credentials}") from None


Account = Annotated[str, Depends(account_of)]


@app.exception_handler(HTTPException)
async def as_openai_says_it(request: Request, exc: HTTPException) -> JSONResponse:
    """Return errors in the format of OpenAI's API."""
    error = {"message": exc.detail, "type": "upstream_says", "param": None, "code": None}
    return JSONResponse({"error": error}, exc.status_code, exc.headers)


@app.exception_handler(RequestValidationError)
async def invalid(request: Request, exc: RequestValidationError) -> JSONResponse:
    """Return a validation error in that format."""
    wrong = "; ".join(f"{error['loc'][-1]}: {error['msg']}" for error in exc.errors())
    return await as_openai_says_it(request, HTTPException(400, wrong))


@app.get("/made")
async def counters() -> dict[str, dict[str, int]]:
    """Return the tokens made for each account, and its open responses."""
    return {
        name: {"tokens": made[name], "at_work": at_work[name]} for name in sorted(KEYS.values())
    }


@app.get("/v1/models")
async def models(account: Account) -> dict[str, object]:
    """List all models, the failing ones too."""
    data = [{"id": model, "object": "model", "owned_by": account} for model in SECONDS_A_TOKEN]
    return {"object": "list", "data": data}


@app.post("/v1/chat/completions")
async def chat(asked: Asked, account: Account, request: Request) -> Response:
    """Answer with a completion, at once or word by word."""
    if asked.model not in SECONDS_A_TOKEN:
        raise HTTPException(404, f"The model {asked.model!r} does not exist")
    if asked.model == "refuses":
        raise HTTPException(429, "The model is overloaded", {"retry-after": "1"})
    await anyio.sleep(THINKS.get(asked.model, 0))
    if asked.stream:
        return StreamingResponse(
            events(asked, tokens(asked, account)),
            media_type="text/event-stream",
            headers={"set-cookie": "session=of-the-gateway", "openai-organization": account},
        )
    words = []
    async for word in tokens(asked, account):
        words.append(word)
        if await request.is_disconnected():
            break
    message = {"role": "assistant", "content": "".join(words)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse(
        named(asked, "chat.completion") | {"choices": [choice], "usage": asked.usage(len(words))}
    )


async def tokens(asked: Asked, account: str) -> AsyncIterator[str]:
    """Yield the words, and count each of them."""
    at_work[account] += 1
    try:
        for number, word in enumerate(itertools.islice(itertools.cycle(WORDS), asked.max_tokens)):
            if asked.model == "dies" and number == DIES_AFTER:
                raise RuntimeError("this model dies in the middle of its answer, as asked")
            await anyio.sleep(SECONDS_A_TOKEN[asked.model])
            made[account] += 1
            yield f"{word} "
    finally:
        at_work[account] -= 1


async def events(asked: Asked, words: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield the words as events, then the end, and the usage if requested."""
    head, count = named(asked, "chat.completion.chunk"), 0
    async for word in words:
        count += 1
        yield event(head | {"choices": [choice({"content": word})]})
    yield event(head | {"choices": [choice({}, "stop")]})
    if asked.stream_options.include_usage:
        yield event(head | {"choices": [], "usage": asked.usage(count)})
    yield "data: [DONE]\n\n"


def choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def event(data: dict[str, object]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def named(asked: Asked, kind: str) -> dict[str, object]:
    """Return the common parts of every chunk."""
    now = time.time_ns()
    return {
        "id": f"chatcmpl-{now:x}",
        "object": kind,
        "created": now // 10**9,
        "model": asked.model,
    }
