"""The gateway: OpenAI clients call it with a key of their own and reach the models behind it.

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
MAX_BYTES = 1_000_000  # bytes of a request
NOT_AN_OBJECT = "the body is not a JSON object"
# The upstream's headers that do not concern the gateway's account there.
RELAYED = {"content-type", "content-encoding", "content-length", "retry-after", "cache-control"}


class Upstream(NamedTuple):
    """The address and key of a model provider."""

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
                timeout=httpx.Timeout(10, read=60, pool=1),  # A model may need long.
                limits=httpx.Limits(max_connections=200, max_keepalive_connections=200),
                observers=[observe],
            )
            for name, upstream in UPSTREAMS.items()
        )
    )
)
app.mount("/metrics", make_asgi_app(registry))  # For Prometheus. Do not expose it.
serve_page(app)


@app.post("/v1/chat/completions")
async def chat(request: Request, caller: LimitedCaller) -> Response:
    """Answer with a completion of one of the models, streamed or not."""
    asked = await json_of(request)
    model = asked.get("model")
    if not isinstance(model, str) or model not in UPSTREAM_OF:
        raise HTTPException(404, "unknown model; see /v1/models")
    client: httpx.AsyncClient = await client_dependency(UPSTREAM_OF[model])(request)
    options = asked.get("stream_options") or {}
    if not isinstance(options, dict):
        raise HTTPException(400, "stream_options is not an object")
    if asked.get("stream"):
        asked["stream_options"] = options | {"include_usage": True}
    try:
        outgoing = client.build_request("POST", "/chat/completions", json=asked)
    except ValueError:  # `json.loads` accepts NaN and lone surrogates, JSON does not.
        raise HTTPException(400, NOT_AN_OBJECT) from None
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
    """List the models of all upstreams."""
    data = [
        {"id": model, "object": "model", "created": 0, "owned_by": name}
        for model, name in UPSTREAM_OF.items()
    ]
    return {"object": "list", "data": data}


@app.get("/exchanges")
async def own_exchanges(caller: KnownCaller) -> list[dict[str, object]]:
    """List the caller's exchanges, in progress and ended."""
    return exchanges.of(caller.name)


def without_the_account(upstream: httpx.Response) -> None:
    """Hide the state of the gateway's account at the upstream from the caller."""
    if upstream.status_code in (401, 403):  # The body may contain the key.
        raise HTTPException(502, "the upstream does not accept the gateway's key")
    for name in set(upstream.headers) - RELAYED:
        del upstream.headers[name]


def only_events(upstream: httpx.Response) -> None:
    """Check the response of a stream. A proxy's error page, for example, is not a stream."""
    without_the_account(upstream)
    kind = upstream.headers.get("content-type", "")
    if upstream.is_success and not kind.lower().startswith("text/event-stream"):
        raise UpstreamProtocolError


def account_for(listed: Listed, caller: Caller, record: ExchangeRecord) -> None:
    """Record the exchange and its usage. Called at its end, however it ended."""
    listed.record = record
    used = {"prompt": listed.usage.prompt_tokens, "completion": listed.usage.completion_tokens}
    caller.tokens_left -= sum(used.values())
    for kind, count in used.items():
        tokens.labels(caller.name, listed.model, kind).inc(count)


async def json_of(request: Request) -> dict[str, Any]:
    """Return the JSON object that the caller sent. Answer 413 if it is too long."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                raise HTTPException(413, f"more than {MAX_BYTES} bytes")
    except ClientDisconnect:  # The caller cannot read this answer.
        raise HTTPException(400, "the body is incomplete") from None
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise HTTPException(400, NOT_AN_OBJECT)
    return asked


# Errors in the format of OpenAI's API

KINDS = {401: "authentication_error", 429: "rate_limit_error"}


def error_of(status: int, message: str) -> dict[str, object]:
    """Return an error in the format of OpenAI's API."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "upstream_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": str(status)}}


def error_event(exc: Exception) -> bytes:
    """Return the last event of a stream that failed or took too long."""
    error = (
        error_of(504, "The model took too long, and its answer ends here")
        if isinstance(exc, UpstreamTimeout)
        else error_of(502, "The model broke off in the middle of its answer")
    )
    return b"data: %s\n\n" % json.dumps(error).encode()


@app.exception_handler(HTTPException)
async def as_openai_says_it(request: Request, exc: HTTPException) -> JSONResponse:
    """Answer every error before the first byte, including those of the library."""
    return JSONResponse(error_of(exc.status_code, exc.detail), exc.status_code, exc.headers)
