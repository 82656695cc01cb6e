"""The gateway: OpenAI and Anthropic clients reach the models with a key of the gateway's.

    uvicorn examples.llm_gateway.app:app
    curl -N -H 'authorization: Bearer key-of-ann' -H 'content-type: application/json' \\
        -d '{"model": "swift-1", "stream": true, "messages": []}' \\
        http://127.0.0.1:8000/v1/chat/completions

Each upstream has its own client with its own pool and key. A caller's key is not sent to an
upstream, and an upstream's key is not sent to a caller.
"""

import os
from functools import partial
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, make_asgi_app
from starlette.exceptions import HTTPException as AnyHTTPException

from asgi_upstream import (
    BufferedResponse,
    ExchangeRecord,
    ReverseProxy,
    StreamedResponse,
    UpstreamProtocolError,
    client_dependency,
    client_lifespan,
    combine_lifespans,
)
from asgi_upstream.instrumentation.prometheus import prometheus_observer

from .apis import CHAT, COUNT_TOKENS, MESSAGES, RESPONSES, Api, error_response, speaks_anthropic
from .bodies import NOT_AN_OBJECT, read_object
from .callers import Caller, KnownCaller, LimitedCaller
from .exchanges import Exchanges, Listed
from .page import serve_page
from .upstreams import UPSTREAMS, find_upstream
from .usage import Usage

DEADLINE = float(os.environ.get("DEADLINE", 300))  # seconds, for a whole answer
HEARTBEAT = float(os.environ.get("HEARTBEAT", 15))  # seconds of silence
# The caller's headers that an upstream gets.
SENT = {"anthropic-version", "anthropic-beta"}
# The upstream's headers that do not concern the gateway's account there.
RELAYED = {
    *("content-type", "content-encoding", "content-length", "retry-after", "cache-control"),
    *("request-id", "x-request-id"),
}

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
                headers=upstream.headers,
                timeout=httpx.Timeout(10, read=60, pool=1),  # A model may need long.
                limits=httpx.Limits(max_connections=200, max_keepalive_connections=200),
                observers=[observe],
            )
            for name, upstream in UPSTREAMS.items()
        )
    )
)
app.add_exception_handler(AnyHTTPException, error_response)  # type: ignore[arg-type]
app.mount("/metrics", make_asgi_app(registry))  # For Prometheus. Do not expose it.
serve_page(app)


@app.post("/v1/chat/completions")
async def chat(request: Request, caller: LimitedCaller) -> Response:
    """Answer with a chat completion, streamed or not."""
    asked = await read_object(request)
    options = asked.get("stream_options") or {}
    if not isinstance(options, dict):
        raise HTTPException(400, "stream_options is not an object")
    if asked.get("stream"):
        asked["stream_options"] = options | {"include_usage": True}
    hide_usage = not options.get("include_usage")
    return await answer(request, caller, CHAT, asked, hide_usage=hide_usage)


@app.post("/v1/responses")
async def responses(request: Request, caller: LimitedCaller) -> Response:
    """Answer with a response of OpenAI's Responses API, streamed or not."""
    return await answer(request, caller, RESPONSES, await read_object(request))


@app.post("/v1/messages")
async def messages(request: Request, caller: LimitedCaller) -> Response:
    """Answer with a message of Anthropic's API, streamed or not."""
    return await answer(request, caller, MESSAGES, await read_object(request))


@app.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, caller: LimitedCaller) -> Response:
    """Answer with the number of tokens that a message would have."""
    return await answer(request, caller, COUNT_TOKENS, await read_object(request))


async def answer(
    request: Request, caller: Caller, api: Api, asked: dict[str, Any], *, hide_usage: bool = False
) -> Response:
    """Relay the answer of the upstream that has the model, and count its tokens."""
    model = asked.get("model")
    name = find_upstream(model, api.kind)
    client: httpx.AsyncClient = await client_dependency(name)(request)
    headers = {key: value for key, value in request.headers.items() if key in SENT}
    try:
        outgoing = client.build_request("POST", api.path, json=asked, headers=headers)
    except ValueError:  # `json.loads` accepts NaN and lone surrogates, JSON does not.
        raise HTTPException(400, NOT_AN_OBJECT) from None
    usage = Usage()
    ended = partial(account_for, exchanges.begin(caller.name, str(model), usage), caller)
    if not asked.get("stream"):

        def whole(upstream: httpx.Response) -> None:
            hide_account(upstream)
            usage.count_whole(upstream)

        return BufferedResponse(
            client, outgoing, on_response=whole, deadline=DEADLINE, observers=[ended]
        )
    return StreamedResponse(
        client,
        outgoing,
        on_response=only_events,
        transform=usage.count_and_hide if hide_usage else usage.count,
        on_stream_error=api.error_event,
        heartbeat=HEARTBEAT,
        deadline=DEADLINE,
        observers=[ended],
    )


@app.get("/v1/models")
async def models(request: Request, caller: KnownCaller) -> dict[str, object]:
    """List the models that the caller's client can use."""
    kind = "anthropic" if speaks_anthropic(request) else "openai"
    data = [
        {"id": model, "object": "model", "created": 0, "owned_by": name}
        for name, upstream in UPSTREAMS.items()
        if upstream.api == kind
        for model in upstream.models
    ]
    return {"object": "list", "data": data}


@app.get("/exchanges")
async def own_exchanges(caller: KnownCaller) -> list[dict[str, object]]:
    """List the caller's exchanges, in progress and ended."""
    return exchanges.of(caller.name)


def hide_account(upstream: httpx.Response) -> None:
    """Hide the state of the gateway's account at the upstream from the caller."""
    if upstream.status_code in (401, 403):  # The body may contain the key.
        raise HTTPException(502, "the upstream does not accept the gateway's key")
    for name in set(upstream.headers) - RELAYED:
        del upstream.headers[name]


def only_events(upstream: httpx.Response) -> None:
    """Check the response of a stream. A proxy's error page, for example, is not a stream."""
    hide_account(upstream)
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


# An endpoint that the gateway only forwards, byte for byte

FORWARDED = {
    *(b"host", b"authorization", b"accept", b"accept-encoding", b"user-agent"),
    *(b"content-type", b"content-encoding", b"content-length", b"transfer-encoding"),
}
embeddings_proxy = ReverseProxy(
    "swift",
    prefix="/v1",
    # The client's `authorization` has replaced the caller's here.
    headers=lambda headers: [(name, value) for name, value in headers if name in FORWARDED],
    on_response=hide_account,
    deadline=DEADLINE,
)


@app.post("/v1/embeddings")
async def embeddings(request: Request, caller: LimitedCaller) -> Response:
    """Forward to the upstream that has embeddings."""
    return await embeddings_proxy.respond(request)
