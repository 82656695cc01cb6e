"""A real pool of one connection, and a request that is cancelled at each of its waits."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from asgi_upstream import BufferedResponse, StreamedResponse
from asgi_upstream._httpx.workarounds import (
    EarlyResponseDetector,
    close_stranded_connections,
    end_connection_if_unusable,
    holds_pool_place,
    reset_abandoned_streams,
    warn_of_unknown_httpcore,
)
from asgi_upstream.transport import AsyncioTransport
from tests.support.asgi import Caller
from tests.support.cancellation import cancelled_at_each_wait
from tests.support.responses import AnyClass, both
from tests.support.upstream import Upstream


@both
@pytest.mark.asyncio
async def test_pool_regains_its_slot_at_any_cancellation(upstream: Upstream, cls: AnyClass) -> None:
    async def transport() -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1))

    assert await cancelled_at_each_wait(upstream.url, transport, cls, 40) > 5


@pytest.mark.parametrize("failure", [AttributeError, OSError, ValueError])
def test_a_connection_that_is_gone_has_given_no_early_answer(failure: type[Exception]) -> None:
    stream, client = object(), Mock()

    class Pool:
        _requests = [Mock()]  # noqa: RUF012

    Pool._requests[0].request.stream = stream
    connection = Pool._requests[0].connection = Mock(spec=["_network_stream"])
    # anyio asks the socket for both its names, whatever it is asked for itself.
    connection._network_stream.get_extra_info.side_effect = failure
    client._transport_for_url.return_value._pool = Pool()
    assert not EarlyResponseDetector(client, "http://any", stream).available()


class _UnknownConnection:
    """A connection of a later httpcore."""

    def is_idle(self) -> bool:
        return False

    is_closed = is_idle


def _make_unknown(name: str, **attributes: object) -> Any:
    cls = type(name, (), {"__module__": "httpcore._async.connection_pool"})
    instance: Any = cls()
    vars(instance).update(attributes)
    return instance


@pytest.fixture
def forgotten_warnings() -> Iterator[None]:
    warn_of_unknown_httpcore.cache_clear()
    yield
    warn_of_unknown_httpcore.cache_clear()


@pytest.mark.usefixtures("forgotten_warnings")
@pytest.mark.asyncio
async def test_unknown_httpcore_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    inner = _make_unknown("ByteStream", _connection=_UnknownConnection())
    response = Mock(stream=_make_unknown("PoolStream", _stream=inner))
    for _ in range(3):
        end_connection_if_unusable(response, has_ended=False)
        assert not holds_pool_place(response)
        await close_stranded_connections(_make_unknown("Pool"))
        await reset_abandoned_streams(_make_unknown("Pool"))
    assert [(r.levelname, r.getMessage().split(": ")[1].split(";")[0]) for r in caplog.records] == [
        ("WARNING", "bytes after a response are not detected"),
        ("WARNING", "cancelled requests may use up the pool"),
        ("WARNING", "HTTP/2 streams are not reset"),
    ]


@pytest.mark.usefixtures("forgotten_warnings")
@pytest.mark.asyncio
async def test_other_transports_are_not_warned_of(
    upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="ok")

    for transport in (httpx.MockTransport(respond), httpx.AsyncHTTPTransport(), AsyncioTransport()):
        async with httpx.AsyncClient(transport=transport, base_url=upstream.url) as client:
            for cls in (StreamedResponse, BufferedResponse):
                await Caller().call(cls(client, client.build_request("GET", "/item")))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
