"""A small model server without a model or a network. Words of a text are its tokens.

    uvicorn examples.llm_gateway.upstream:app --port 9001
    curl http://127.0.0.1:9001/made

It has OpenAI's chat completions, responses and embeddings, and Anthropic's messages. Like a real
one, it bills the account whose key a request has. /made tells how many tokens it has made for each
account, and how many responses are open. Some of its models fail like real ones on bad days.
"""

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Annotated, Any

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from .model import SECONDS_A_TOKEN, THINKS, Asked, at_work, made, tokens

KEYS = {f"sk-of-the-gateway-at-{name}": name for name in ("swift", "deep", "wise")}
app = FastAPI()
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
ApiKey = Annotated[str | None, Depends(APIKeyHeader(name="x-api-key", auto_error=False))]


async def account_of(bearer: Bearer, api_key: ApiKey) -> str:
    """Return the account. Answer 401 for an unknown key and quote it, like real servers."""
    key = bearer.credentials if bearer else str(api_key)
    try:
        return KEYS[key]
    except KeyError:
        raise HTTPException(401, f"Incorrect API key provided: {key}") from None


Account = Annotated[str, Depends(account_of)]


@app.exception_handler(HTTPException)
async def format_error(request: Request, exc: HTTPException) -> JSONResponse:
    """Return errors in the format of both APIs, which differ only in `type`."""
    error = {"message": exc.detail, "type": "upstream_says", "param": None, "code": None}
    return JSONResponse({"type": "error", "error": error}, exc.status_code, exc.headers)


@app.exception_handler(RequestValidationError)
async def invalid(request: Request, exc: RequestValidationError) -> JSONResponse:
    """Return a validation error in that format."""
    wrong = "; ".join(f"{error['loc'][-1]}: {error['msg']}" for error in exc.errors())
    return await format_error(request, HTTPException(400, wrong))


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


# Chat completions


@app.post("/v1/chat/completions")
async def chat(asked: Asked, account: Account, request: Request) -> Response:
    """Answer with a completion, at once or word by word."""
    usage_of = partial(usage, asked, "prompt_tokens", "completion_tokens")

    async def events(words: AsyncIterator[str]) -> AsyncIterator[str]:
        head, count = named(asked, "chat.completion.chunk"), 0
        async for word in words:
            count += 1
            yield event(head | {"choices": [choice({"content": word})]})
        yield event(head | {"choices": [choice({}, "stop")]})
        if asked.stream_options.include_usage:
            yield event(head | {"choices": [], "usage": usage_of(count)})
        yield "data: [DONE]\n\n"

    def whole(words: list[str]) -> dict[str, object]:
        message = {"role": "assistant", "content": "".join(words)}
        answer = {"index": 0, "message": message, "finish_reason": "stop"}
        return named(asked, "chat.completion") | {
            "choices": [answer],
            "usage": usage_of(len(words)),
        }

    return await respond(asked, account, request, events, whole)


def choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


# Responses


@app.post("/v1/responses")
async def responses(asked: Asked, account: Account, request: Request) -> Response:
    """Answer with a response, at once or word by word."""

    def response(status: str, words: list[str]) -> dict[str, object]:
        content = {"type": "output_text", "text": "".join(words), "annotations": []}
        message = {"type": "message", "id": "msg_1", "role": "assistant", "status": status}
        done = status == "completed"
        return named(asked, "response") | {
            "status": status,
            "output": [message | {"content": [content]}] if done else [],
            "usage": usage(asked, "input_tokens", "output_tokens", len(words)) if done else None,
        }

    async def events(words: AsyncIterator[str]) -> AsyncIterator[str]:
        made: list[str] = []
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        yield named_event("response.created", {"response": response("in_progress", [])})
        async for word in words:
            made.append(word)
            yield named_event("response.output_text.delta", place | {"delta": word})
        yield named_event("response.completed", {"response": response("completed", made)})

    return await respond(asked, account, request, events, partial(response, "completed"))


# Messages


@app.post("/v1/messages")
async def messages(asked: Asked, account: Account, request: Request) -> Response:
    """Answer with a message, at once or word by word."""

    def message(words: list[str], stop_reason: str | None) -> dict[str, object]:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": asked.model,
            "content": [{"type": "text", "text": "".join(words)}] if words else [],
            "stop_reason": stop_reason,
            "usage": {"input_tokens": asked.prompt_tokens, "output_tokens": len(words)},
        }

    async def events(words: AsyncIterator[str]) -> AsyncIterator[str]:
        count, block = 0, {"type": "text", "text": ""}
        yield named_event("message_start", {"message": message([], None)})
        yield named_event("content_block_start", {"index": 0, "content_block": block})
        async for word in words:
            count += 1
            delta = {"type": "text_delta", "text": word}
            yield named_event("content_block_delta", {"index": 0, "delta": delta})
        yield named_event("content_block_stop", {"index": 0})
        end = {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": count}}
        yield named_event("message_delta", end)
        yield named_event("message_stop", {})

    return await respond(asked, account, request, events, partial(message, stop_reason="end_turn"))


@app.post("/v1/messages/count_tokens")
async def count_tokens(asked: Asked, account: Account) -> dict[str, int]:
    """Count the tokens of a prompt."""
    return {"input_tokens": asked.prompt_tokens}


# Embeddings


@app.post("/v1/embeddings")
async def embeddings(asked: Asked, account: Account) -> JSONResponse:
    """Answer with a vector: the length of each word."""
    vector = [float(len(word)) for word in str(asked.input).split()]
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    count = usage(asked, "prompt_tokens", "completion_tokens", 0)
    body = {"object": "list", "model": asked.model, "data": data, "usage": count}
    return JSONResponse(body, headers={"openai-organization": account})


# What they share


async def respond(
    asked: Asked,
    account: str,
    request: Request,
    events: Callable[[AsyncIterator[str]], AsyncIterator[str]],
    whole: Callable[[list[str]], dict[str, object]],
) -> Response:
    """Answer with a stream of events, or with one object when all words are made."""
    if asked.model not in SECONDS_A_TOKEN:
        raise HTTPException(404, f"The model {asked.model!r} does not exist")
    if asked.model == "refuses":
        raise HTTPException(429, "The model is overloaded", {"retry-after": "1"})
    await anyio.sleep(THINKS.get(asked.model, 0))
    if asked.stream:
        return StreamingResponse(
            events(tokens(asked, account)),
            media_type="text/event-stream",
            headers={"set-cookie": "session=of-the-gateway", "openai-organization": account},
        )
    words = []
    async for word in tokens(asked, account):
        words.append(word)
        if await request.is_disconnected():
            break
    return JSONResponse(whole(words))


def usage(asked: Asked, prompt: str, completion: str, count: int) -> dict[str, int]:
    tokens = asked.prompt_tokens
    return {prompt: tokens, completion: count, "total_tokens": tokens + count}


def event(data: Mapping[str, object]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def named_event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\n{event({'type': name} | data)}"


def named(asked: Asked, kind: str) -> dict[str, object]:
    """Return the common parts of every object."""
    now = time.time_ns()
    return {
        "id": f"{now:x}",
        "object": kind,
        "created": now // 10**9,
        "created_at": now // 10**9,
        "model": asked.model,
    }
