"""Bodies that only the end of a TLS connection delimits."""

from asgi_upstream._exchange.undelimited import find_delimiting_tls
from tests.support.flavor import httpx


def test_network_stream_without_extra_info_has_no_tls() -> None:
    """The stream of httpx2's transport to the WebSockets of an ASGI app is one."""
    response = httpx.Response(
        200,
        stream=httpx.ByteStream(b""),
        extensions={"network_stream": object()},
        request=httpx.Request("GET", "http://upstream"),
    )
    assert find_delimiting_tls(response) is None
