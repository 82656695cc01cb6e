"""What differs between the three APIs: paths, errors, and the last event of a broken stream."""

import json
from collections.abc import Callable
from typing import NamedTuple

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from asgi_upstream import UpstreamTimeout


class Api(NamedTuple):
    """An API that the gateway relays."""

    path: str  # under the upstream's URL
    kind: str  # of the upstreams that have it
    error_event: Callable[[Exception], bytes]


OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def openai_error(status: int, message: str) -> dict[str, object]:
    """Return an error in the format of OpenAI's API."""
    kind = OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "upstream_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": str(status)}}


def anthropic_error(status: int, message: str) -> dict[str, object]:
    """Return an error in the format of Anthropic's API."""
    kind = ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def error_response(request: Request, exc: HTTPException) -> JSONResponse:
    """Answer every error before the first byte, including those of the library."""
    make_error = anthropic_error if speaks_anthropic(request) else openai_error
    return JSONResponse(make_error(exc.status_code, exc.detail), exc.status_code, exc.headers)


def speaks_anthropic(request: Request) -> bool:
    """Whether the caller expects the format of Anthropic's API."""
    return request.url.path.startswith("/v1/messages") or "anthropic-version" in request.headers


def describe(exc: Exception) -> tuple[int, str]:
    """Return the status and the message for a stream that failed or took too long."""
    if isinstance(exc, UpstreamTimeout):
        return 504, "The model took too long, and its answer ends here"
    return 502, "The model broke off in the middle of its answer"


def chat_error_event(exc: Exception) -> bytes:
    return b"data: %s\n\n" % json.dumps(openai_error(*describe(exc))).encode()


def responses_error_event(exc: Exception) -> bytes:
    status, message = describe(exc)
    error = {"type": "error", "code": str(status), "message": message, "param": None}
    # OpenAI's clients raise what is under `error`. Others read the event itself.
    data = json.dumps(error | openai_error(status, message)).encode()
    return b"event: error\ndata: %s\n\n" % data


def messages_error_event(exc: Exception) -> bytes:
    return b"event: error\ndata: %s\n\n" % json.dumps(anthropic_error(*describe(exc))).encode()


CHAT = Api("/chat/completions", "openai", chat_error_event)
RESPONSES = Api("/responses", "openai", responses_error_event)
MESSAGES = Api("/messages", "anthropic", messages_error_event)
COUNT_TOKENS = Api("/messages/count_tokens", "anthropic", messages_error_event)
