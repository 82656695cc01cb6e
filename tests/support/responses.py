"""Calls of responses in front of an upstream in memory."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgi_upstream import (
    BufferedResponse,
    StreamedResponse,
)
from tests.support.asgi import Caller, InMemoryUpstream

both = pytest.mark.parametrize("cls", [StreamedResponse, BufferedResponse])


AnyClass = type[StreamedResponse] | type[BufferedResponse]


def answer_of(
    upstream: InMemoryUpstream,
    cls: AnyClass = StreamedResponse,
    method: str = "GET",
    path: str = "/",
    **options: Any,
) -> StreamedResponse | BufferedResponse:
    client = upstream.client()
    return cls(client, client.build_request(method, path), **options)


async def called(
    upstream: InMemoryUpstream,
    cls: AnyClass = StreamedResponse,
    method: str = "GET",
    **options: Any,
) -> Caller:
    """The caller, after it called a response of `upstream`; nothing may be open any more."""
    caller = Caller(method)
    try:
        with anyio.fail_after(60):
            await caller.call(answer_of(upstream, cls, method, **options))
    finally:
        assert upstream.open == 0
    return caller


async def failing(
    upstream: InMemoryUpstream,
    error: type[Exception],
    cls: AnyClass = StreamedResponse,
    **options: Any,
) -> tuple[Caller, Exception]:
    """The same for a call that raises `error`."""
    caller = Caller()
    with anyio.fail_after(60), pytest.raises(error) as caught:
        await caller.call(answer_of(upstream, cls, **options))
    assert type(caught.value) is error, "an exception of another kind, or a group"
    assert upstream.open == 0
    return caller, caught.value


async def upper(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in body:
        yield chunk.upper()


class Ran:
    """A background task that remembers what the caller had when it ran."""

    def __init__(self, caller: Caller, upstream: InMemoryUpstream) -> None:
        self.caller = caller
        self.upstream = upstream
        self.when: list[tuple[bool, int]] = []

    async def __call__(self) -> None:
        self.when.append((self.caller.complete, self.upstream.open))
