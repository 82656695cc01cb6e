"""Builds the requests of a `ReverseProxy`."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response

from .._headers import RawHeaders
from .._hooks import maybe_await
from .._httpx.flavors import describe_type
from .._httpx.interfaces import RequestT
from .._httpx.requests import ForwardedRequest
from .._logging import logger
from .overrides import resolve_client
from .request import HeaderOverrides, apply_overrides
from .target import PrefixMismatch

OnRequest = Callable[
    [RequestT],
    RequestT | Response | Awaitable[RequestT | Response | None] | None,
]
ClientName = str | Callable[[HTTPConnection], str | Awaitable[str]]


class RequestBuilder:
    """Finds the client, builds the request with the proxy's options, and calls `on_request`."""

    def __init__(
        self,
        name: ClientName,
        headers: HeaderOverrides | None,
        on_request: OnRequest[Any] | None,
        **options: Any,
    ) -> None:
        validate_name(name)
        self._name = name
        self._headers = headers
        self._on_request = on_request
        self._options = options
        self._has_logged_mismatch = False

    async def build(
        self,
        connection: HTTPConnection,
        forward: Callable[..., httpx.Request],
        headers: HeaderOverrides | None = None,
    ) -> tuple[httpx.AsyncClient, httpx.Request | Response]:
        """Return the client, and the request to send or the response for the caller.

        Arguments:
            forward: Builds the request, like `forward_request`.
            headers: Headers for this request. They are applied after those of the proxy.

        Raises:
            HTTPException: 400 or 404 for a request that is not forwarded.
        """
        name = self._name
        if callable(name):
            name = await maybe_await(name(connection))
        client = await resolve_client(connection, name)
        overrides = _combine_overrides(self._headers, headers)
        try:
            outgoing = forward(client, connection, headers=overrides, **self._options)
        except PrefixMismatch as exc:
            self._log_mismatch(exc)
            raise HTTPException(404) from exc
        if self._on_request is None:
            return client, outgoing
        if isinstance(outgoing, ForwardedRequest):
            with suppress(ClientDisconnect):  # The exchange finds it again and ends quietly.
                await outgoing.resolve_body()  # so that the hook sees the headers that are sent
        answer = await maybe_await(self._on_request(outgoing))
        return client, outgoing if answer is None else answer

    def _log_mismatch(self, mismatch: PrefixMismatch) -> None:
        """Log the first path outside the prefix. A wrong prefix is otherwise a silent 404."""
        if not self._has_logged_mismatch:
            self._has_logged_mismatch = True
            logger.warning("ReverseProxy answered 404 (logged once): %s", mismatch)


def _combine_overrides(
    first: HeaderOverrides | None, second: HeaderOverrides | None
) -> HeaderOverrides | None:
    if first is None or second is None:
        return second if first is None else first

    def apply_both(raw: RawHeaders) -> RawHeaders:
        return apply_overrides(apply_overrides(raw, first), second)

    return apply_both


def validate_name(name: object) -> None:
    """Reject a URL, a path or a client in place of a client's name, and say what to do.

    Raises:
        TypeError: If it is a client or anything else that is not a name.
        ValueError: If it is a URL or a path.
    """
    if callable(name):
        return
    if not isinstance(name, str):
        raise TypeError(
            f"ReverseProxy needs the name of a client, not {describe_type(name)}: write "
            f"ReverseProxy() for the client of client_lifespan(), or ReverseProxy('billing') for "
            f"another"
        )
    if "://" in name:
        raise ValueError(
            f"ReverseProxy({name!r}): the first argument is the name of a client. The URL belongs "
            f"to the client: client_lifespan(base_url={name!r})"
        )
    if name.startswith("/"):
        raise ValueError(
            f"ReverseProxy({name!r}): the first argument is the name of a client. The path belongs "
            f"to the mount: app.mount({name!r}, ReverseProxy()), or in prefix={name!r}"
        )
