"""The gateway: any OpenAI client calls it, with a key of its own, and reaches a model behind it.

    uvicorn examples.llm_gateway.app:app
    curl -N -H 'authorization: Bearer key-of-ann' -H 'content-type: application/json' \\
        -d '{"model": "swift-1", "stream": true, "messages": []}' \\
        http://127.0.0.1:8000/v1/chat/completions

Each upstream has a client of its own, with its own pool and key. A caller's key ends here, and the
upstream's never leaves.
"""

import json
import os
from functools import partial
from typing import Any, NamedTuple

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, make_asgi_app
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from asgi_upstream import (
    BufferedResponse,
    ExchangeRecord,
    StreamedResponse,
    UpstreamProtocolError,
    UpstreamTimeout,
    client_dependency,
    client_lifespan,
    combine_lifespans,
)
from asgi_upstream.instrumentation.prometheus import prometheus_observer

from .callers import Caller, KnownCaller, LimitedCaller
from .exchanges import Exchanges, Listed
from .page import serve_page
from .usage import Usage

DEADLINE = float(os.environ.get("DEADLINE", 300))  # seconds, for a whole answer
MOST_BYTES = 1_000_000  # of a request
NO_OBJECT = "the body is no JSON object"
# Of the upstream's headers, those that are not about the account of the gateway there.
RELAYED = {"content-type", "content-encoding", "content-length", "retry-after", "cache-control"}


class Upstream(NamedTuple):
    """Where models are, and the key for them."""

    url: str
    key: str
    models: tuple[str, ...]


UPSTREAMS = {
    "swift": Upstream(
        os.environ.get("SWIFT_URL", "http://127.0.0.1:9001/v1"),
        os.environ.get("SWIFT_KEY", "sk-of-the-gateway-at-swift"),
        ("swift-1", "slow", "refuses"),
    ),
    "deep": Upstream(
        os.environ.get("DEEP_URL", "http://127.0.0.1:9001/v1"),
        os.environ.get("DEEP_KEY", "sk-of-the-gateway-at-deep"),
        ("deep-1", "dies"),
    ),
}
UPSTREAM_OF = {model: name for name, upstream in UPSTREAMS.items() for model in upstream.models}

registry = CollectorRegistry()
observe = prometheus_observer(registry)
tokens = Counter(
    "llm_gateway_tokens", "Tokens used.", ("caller", "model", "kind"), registry=registry
)
exchanges = Exchanges()

app = FastAPI(
    lifespan=combine_lifespans(
        *(
            client_lifespan(
                name=name,
                base_url=upstream.url,
                headers={"authorization": f"Bearer {upstream.key}"},
                timeout=httpx.Timeout(10, read=60, pool=1),  # a model may think for long
                limits=httpx.Limits(max_connections=200, max_keepalive_connections=200),
                observers=[observe],
            )
            for name, upstream in UPSTREAMS.items()
        )
    )
)
app.mount("/metrics", make_asgi_app(registry))  # for Prometheus; keep it from the outside
serve_page(app)


@app.post("/v1/chat/completions")
async def chat(request: Request, caller: LimitedCaller) -> Response:
    """A completion by one of the models, streamed or whole."""
    asked = await json_of(request)
    model = asked.get("model")
    if not isinstance(model, str) or model not in UPSTREAM_OF:
        raise HTTPException(404, "there is no such model here; see /v1/models")
    client: httpx.AsyncClient = await client_dependency(UPSTREAM_OF[model])(request)
    options = asked.get("stream_options") or {}
    if not isinstance(options, dict):
        raise HTTPException(400, "stream_options is no object")
    if asked.get("stream"):
        asked["stream_options"] = options | {"include_usage": True}
    try:
        outgoing = client.build_request("POST", "/chat/completions", json=asked)
    except ValueError:  # a NaN, half a surrogate pair: `json.loads` takes them, and nobody else
        raise HTTPException(400, NO_OBJECT) from None
    usage = Usage()
    ended = partial(account_for, exchanges.begin(caller.name, model, usage), caller)
    if not asked.get("stream"):

        def whole(upstream: httpx.Response) -> None:
            without_the_account(upstream)
            usage.count_whole(upstream)

        return BufferedResponse(
            client, outgoing, on_response=whole, deadline=DEADLINE, observers=[ended]
        )
    return StreamedResponse(
        client,
        outgoing,
        on_response=only_events,
        transform=usage.counted if options.get("include_usage") else usage.counted_and_hidden,
        on_stream_error=error_event,
        deadline=DEADLINE,
        observers=[ended],
    )


@app.get("/v1/models")
async def models(caller: KnownCaller) -> dict[str, object]:
    """Those of all upstreams."""
    data = [
        {"id": model, "object": "model", "created": 0, "owned_by": name}
        for model, name in UPSTREAM_OF.items()
    ]
    return {"object": "list", "data": data}


@app.get("/exchanges")
async def own_exchanges(caller: KnownCaller) -> list[dict[str, object]]:
    """The caller's own: what is under way, and how the others ended."""
    return exchanges.of(caller.name)


def without_the_account(upstream: httpx.Response) -> None:
    """What the upstream says of the gateway's account there stays here: also its refusal."""
    if upstream.status_code in (401, 403):  # may cite the key
        raise HTTPException(502, "the upstream does not accept the gateway's key")
    for name in set(upstream.headers) - RELAYED:
        del upstream.headers[name]


def only_events(upstream: httpx.Response) -> None:
    """The same, for a stream: a page of a proxy in front of the model, say, is none."""
    without_the_account(upstream)
    kind = upstream.headers.get("content-type", "")
    if upstream.is_success and not kind.lower().startswith("text/event-stream"):
        raise UpstreamProtocolError


def account_for(listed: Listed, caller: Caller, record: ExchangeRecord) -> None:
    """An observer: the exchange is over, however it ended, and what it took is known."""
    listed.record = record
    used = {"prompt": listed.usage.prompt_tokens, "completion": listed.usage.completion_tokens}
    caller.tokens_left -= sum(used.values())
    for kind, count in used.items():
        tokens.labels(caller.name, listed.model, kind).inc(count)


async def json_of(request: Request) -> dict[str, Any]:
    """The object that a caller sent; 413 for one that is too long."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise HTTPException(413, f"more than {MOST_BYTES} bytes")
    except ClientDisconnect:  # nobody is left to read this
        raise HTTPException(400, "the body is not whole") from None
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise HTTPException(400, NO_OBJECT)
    return asked


# Errors, in the form that OpenAI's clients read

KINDS = {401: "authentication_error", 429: "rate_limit_error"}


def error_of(status: int, message: str) -> dict[str, object]:
    """An error as OpenAI's own API says it."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "upstream_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": str(status)}}


def error_event(exc: Exception) -> bytes:
    """The last event of an answer whose upstream died, or took too long."""
    error = (
        error_of(504, "The model took too long, and its answer ends here")
        if isinstance(exc, UpstreamTimeout)
        else error_of(502, "The model broke off in the middle of its answer")
    )
    return b"data: %s\n\n" % json.dumps(error).encode()


@app.exception_handler(HTTPException)
async def as_openai_says_it(request: Request, exc: HTTPException) -> JSONResponse:
    """Every error before the first byte, those of the library among them."""
    return JSONResponse(error_of(exc.status_code, exc.detail), exc.status_code, exc.headers)
