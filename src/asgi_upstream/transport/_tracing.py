"""Calls the `trace` extension of a request and writes the DEBUG log, with httpcore's events.

The events of a connect belong to the request that caused it. Its task finds the tracer of that
request in a context variable.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from ._connection import HTTP11Connection
from ._serializer import OutgoingRequest

Trace = Callable[[str, dict[str, Any]], Awaitable[None]]
Result = dict[str, Any]

_connecting: ContextVar["Tracer | None"] = ContextVar("asgi_upstream.tracer", default=None)


class TraceSettings:
    """Decides whether a request is traced.

    Arguments:
        core: The name of httpcore or httpcore2, whose loggers are used.
    """

    def __init__(self, core: str) -> None:
        self.loggers: dict[str, logging.Logger] = {
            name: logging.getLogger(f"{core}.{name}") for name in ("connection", "http11")
        }
        self._connection_logger, self._http11_logger = self.loggers.values()

    def is_traced(self, extensions: Mapping[str, Any]) -> bool:
        return (
            "trace" in extensions
            or self._http11_logger.isEnabledFor(logging.DEBUG)
            or self._connection_logger.isEnabledFor(logging.DEBUG)
        )


class Tracer:
    """Reports the events of one request.

    Arguments:
        loggers: The loggers by the first part of an event's name.
    """

    def __init__(self, request: Any, loggers: Mapping[str, logging.Logger]) -> None:
        self.request = request
        self._trace: Trace | None = request.extensions.get("trace")
        self._loggers = loggers

    @asynccontextmanager
    async def event(self, name: str, **info: object) -> AsyncGenerator[Result]:
        """Report when the block starts, and when it completes or fails.

        Yields:
            A dict for the `return_value` of the block.
        """
        await self.report(f"{name}.started", info)
        result: Result = {"return_value": None}
        try:
            yield result
        except BaseException as exc:
            await self.report(f"{name}.failed", {"exception": exc})
            raise
        await self.report(f"{name}.complete", result)

    @contextmanager
    def cover_connect(self) -> Generator[None]:
        """Report the connect that the block starts."""
        token = _connecting.set(self)
        try:
            yield
        finally:
            _connecting.reset(token)

    async def send(self, connection: HTTP11Connection, outgoing: OutgoingRequest) -> None:
        """Send a request, and wait for the head of the response."""
        async with self.event("http11.send_request_headers", request=self.request):
            if isinstance(outgoing.content, bytes):
                connection.send(outgoing)
            else:
                connection.send(replace(outgoing, content=_TracedBody(self, outgoing.content)))
        if isinstance(outgoing.content, bytes):
            async with self.event("http11.send_request_body", request=self.request):
                pass  # sent with the head
        async with self.event("http11.receive_response_headers", request=self.request) as result:
            while not connection.has_head:
                await connection.wait_readable()
            head = connection.head
            result["return_value"] = head.version, head.status, head.reason, head.headers

    async def report(self, name: str, info: dict[str, Any]) -> None:
        if self._trace is not None:
            await self._trace(name, info)
        prefix, _, short_name = name.partition(".")
        logger = self._loggers[prefix]
        if logger.isEnabledFor(logging.DEBUG):
            values = " ".join(f"{key}={value!r}" for key, value in info.items())
            if info.get("return_value", values) is None:
                values = ""
            logger.debug(f"{short_name} {values}".rstrip())


class _TracedBody(AsyncIterator[bytes]):
    """Reports when a request body starts and ends."""

    def __init__(self, tracer: Tracer, content: AsyncIterator[bytes]) -> None:
        self._tracer = tracer
        self._content = content
        self._started = False

    async def __anext__(self) -> bytes:
        name, tracer = "http11.send_request_body", self._tracer
        if not self._started:
            self._started = True
            await tracer.report(f"{name}.started", {"request": tracer.request})
        try:
            return await anext(self._content)
        except StopAsyncIteration:
            await tracer.report(f"{name}.complete", {"return_value": None})
            raise
        except BaseException as exc:
            await tracer.report(f"{name}.failed", {"exception": exc})
            raise


class ConnectedStream:
    """The `return_value` of a connect. It has the addresses, like httpcore's streams.

    Arguments:
        get_extra_info: That of asyncio's transport.
    """

    def __init__(self, get_extra_info: Callable[[str], Any]) -> None:
        self._get_extra_info = get_extra_info

    def get_extra_info(self, info: str) -> Any:
        name = {"client_addr": "sockname", "server_addr": "peername"}.get(info, info)
        return self._get_extra_info(name)


@asynccontextmanager
async def trace_connect(name: str, **info: object) -> AsyncGenerator[Result]:
    """Report a part of a connect to the tracer of the request that caused it, if there is one."""
    tracer = _connecting.get()
    if tracer is None:
        yield {}
    else:
        async with tracer.event(f"connection.{name}", **info) as result:
            yield result
