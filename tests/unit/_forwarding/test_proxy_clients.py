"""ReverseProxy: the client that it uses for a request."""

import uuid
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from asgi_upstream import (
    ReverseProxy,
)
from asgi_upstream.dependencies import _cached_dependency
from tests.support.asgi import answering
from tests.support.forwarding import (
    called,
    caller_of,
    client_of,
    forwarded,
)

pytestmark = pytest.mark.virtual_time


async def _by_header(connection: HTTPConnection) -> str:
    return connection.headers["x-tenant"]


@pytest.mark.anyio
@pytest.mark.parametrize("name", [_by_header, lambda c: c.headers["x-tenant"]])
async def test_the_client_may_be_chosen_for_each_request(name: Any) -> None:
    upstreams = {"one": answering(b"1"), "two": answering(b"2")}
    state = {key: client_of(upstream) for key, upstream in upstreams.items()}
    for tenant, body in (("two", b"2"), ("one", b"1")):
        caller = caller_of(headers=[(b"x-tenant", tenant.encode())], state=state)
        await called(caller, ReverseProxy(name))
        assert caller.body == body


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["none", _by_header, lambda c: c.headers["x-tenant"]])
async def test_a_name_that_no_client_has_is_an_error_that_names_it(name: Any) -> None:
    caller = caller_of(headers=[(b"x-tenant", b"none")], client=client_of())
    with pytest.raises(RuntimeError, match="no client named 'none'"):
        await called(caller, ReverseProxy(name))


@pytest.mark.anyio
async def test_names_that_callers_choose_are_not_kept_for_ever() -> None:
    before = _cached_dependency.cache_info().currsize
    for _ in range(20):
        tenant = uuid.uuid4().hex.encode()
        caller = caller_of(headers=[(b"x-tenant", tenant)], client=client_of())
        with pytest.raises(RuntimeError):
            await called(caller, ReverseProxy(_by_header))
    assert _cached_dependency.cache_info().currsize == before


@pytest.mark.anyio
async def test_a_name_function_may_refuse_the_caller() -> None:
    def name(connection: HTTPConnection) -> str:
        raise HTTPException(401, headers={"www-authenticate": "Basic"})

    upstream = answering()
    caller = await forwarded(upstream, name=name)
    assert (caller.status, caller.values("www-authenticate")) == (401, ["Basic"])
    assert upstream.requests == []
