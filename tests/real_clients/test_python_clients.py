"""The HTTP clients of Python: httpx, httpx2, requests (and so urllib3) and aiohttp.

Each does the same through a few lines of its own, as its users write them.
"""

import asyncio
import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import aiohttp
import httpx
import httpx2
import pytest
import requests

from tests.real_clients.upstreams import Upstreams, both_transports
from tests.support.waiting import eventually

pytestmark = both_transports

PART = bytes(range(256)) * 400
PARTS = 30
DIGEST = hashlib.sha256(PART * PARTS).hexdigest()


class ClientAnswer(NamedTuple):
    status: int
    body: bytes
    cookies: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


class Client(ABC):
    """What a test asks of a client."""

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def ask(self, method: str, path: str, **options: Any) -> ClientAnswer: ...

    @abstractmethod
    def upload(self, path: str) -> ClientAnswer:
        """Send a body of unknown length."""

    @abstractmethod
    def form(self, path: str, file: bytes) -> ClientAnswer: ...

    @abstractmethod
    def read_and_leave(self, path: str) -> bytes:
        """The first bytes of a body, of which no more is read."""

    @abstractmethod
    def lines(self, path: str, last: str = "") -> list[str]:
        """The lines of a body, to its end or to the last one that is wanted."""

    @abstractmethod
    def close(self) -> None: ...


def parts() -> Iterator[bytes]:
    for _ in range(PARTS):
        yield PART


def until(last: str, lines: Iterator[str]) -> list[str]:
    got = []
    for line in lines:
        got.append(line)
        if last and line == last:
            break
    return got


class Httpx(Client):
    def __init__(self, url: str, package: Any = httpx) -> None:
        super().__init__(url)
        self._client = package.Client(base_url=url, trust_env=False, timeout=60)

    def ask(self, method: str, path: str, **options: Any) -> ClientAnswer:
        if isinstance(options.get("data"), bytes):
            options["content"] = options.pop("data")
        answer = self._client.request(method, path, follow_redirects=True, **options)
        return ClientAnswer(answer.status_code, answer.content, dict(self._client.cookies))

    def upload(self, path: str) -> ClientAnswer:
        return self.ask("POST", path, content=parts())

    def form(self, path: str, file: bytes) -> ClientAnswer:
        return self.ask("POST", path, files={"file": ("name.bin", file)}, data={"a": "b"})

    def read_and_leave(self, path: str) -> bytes:
        with self._client.stream("GET", path) as answer:
            first: bytes = next(answer.iter_bytes())
            return first

    def lines(self, path: str, last: str = "") -> list[str]:
        with self._client.stream("GET", path) as answer:
            return until(last, answer.iter_lines())

    def close(self) -> None:
        self._client.close()


class Httpx2(Httpx):
    def __init__(self, url: str) -> None:
        super().__init__(url, httpx2)


class Requests(Client):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._session = requests.Session()
        self._session.trust_env = False

    def ask(self, method: str, path: str, **options: Any) -> ClientAnswer:
        with self._session.request(method, self.url + path, timeout=60, **options) as answer:
            return ClientAnswer(
                answer.status_code,
                answer.content,
                {c.name: c.value or "" for c in self._session.cookies},
            )

    def upload(self, path: str) -> ClientAnswer:
        return self.ask("POST", path, data=parts())

    def form(self, path: str, file: bytes) -> ClientAnswer:
        return self.ask("POST", path, files={"file": ("name.bin", file)}, data={"a": "b"})

    def read_and_leave(self, path: str) -> bytes:
        with self._session.get(self.url + path, stream=True, timeout=60) as answer:
            first: bytes = next(answer.iter_content(1000))
            return first

    def lines(self, path: str, last: str = "") -> list[str]:
        with self._session.get(self.url + path, stream=True, timeout=60) as answer:
            return until(last, (line.decode() for line in answer.iter_lines(chunk_size=1)))

    def close(self) -> None:
        self._session.close()


class Aiohttp(Client):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._loop = asyncio.Runner()
        self._loop.run(self._open())

    async def _open(self) -> None:
        jar = aiohttp.CookieJar(unsafe=True)  # of an address, not a name
        timeout = aiohttp.ClientTimeout(20)
        self._session = aiohttp.ClientSession(self.url, cookie_jar=jar, timeout=timeout)

    def ask(self, method: str, path: str, **options: Any) -> ClientAnswer:
        async def ask() -> ClientAnswer:
            async with self._session.request(method, path, **options) as answer:
                cookies = {cookie.key: cookie.value for cookie in self._session.cookie_jar}
                return ClientAnswer(answer.status, await answer.read(), cookies)

        return self._loop.run(ask())

    def upload(self, path: str) -> ClientAnswer:
        async def several() -> AsyncIterator[bytes]:
            for part in parts():
                yield part

        return self.ask("POST", path, data=several())

    def form(self, path: str, file: bytes) -> ClientAnswer:
        form = aiohttp.FormData({"a": "b"})
        form.add_field("file", io.BytesIO(file), filename="name.bin")
        return self.ask("POST", path, data=form)

    def read_and_leave(self, path: str) -> bytes:
        async def read() -> bytes:
            async with self._session.get(path) as answer:
                return await answer.content.readany()

        return self._loop.run(read())

    def lines(self, path: str, last: str = "") -> list[str]:
        async def read() -> list[str]:
            lines = []
            async with self._session.get(path) as answer:
                async for line in answer.content:
                    lines.append(line.decode().rstrip("\n"))
                    if last and lines[-1] == last:
                        break
            return lines

        return self._loop.run(read())

    def close(self) -> None:
        self._loop.run(self._session.close())
        self._loop.close()


CLIENTS = {"httpx": Httpx, "httpx2": Httpx2, "requests": Requests, "aiohttp": Aiohttp}


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, url: str) -> Iterator[Client]:
    client = CLIENTS[request.param](url)
    yield client
    client.close()


def test_each_method_arrives_with_its_query(client: Client) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        echo = client.ask(method, "/web/echo?a=1&a=2&b=%20x").json()
        assert (echo["method"], echo["query"]) == (method, "a=1&a=2&b=%20x")


def test_json_arrives(client: Client) -> None:
    echo = client.ask("POST", "/web/echo", json={"name": "Ann"}).json()
    assert ["content-type", "application/json"] in echo["fields"]
    written = (b'{"name": "Ann"}', b'{"name":"Ann"}')
    assert echo["sha256"] in [hashlib.sha256(text).hexdigest() for text in written]


def test_an_upload_of_unknown_length_arrives_whole(client: Client) -> None:
    echo = client.upload("/web/echo").json()
    assert echo["sha256"] == DIGEST
    assert ["transfer-encoding", "chunked"] in echo["fields"]


def test_a_form_with_a_file_arrives_whole(client: Client) -> None:
    said = client.form("/web/form", PART * PARTS).json()
    assert said == {"a": ["b"], "file": ["name.bin", DIGEST]}


def test_a_compressed_answer_is_decoded_by_the_client(client: Client) -> None:
    assert client.ask("GET", "/web/zipped").body == b"zipped " * 1000


def test_a_refusal_of_an_upload_is_seen(client: Client) -> None:
    assert client.ask("POST", "/web/refuse", data=b"a" * 100_000).status == 413


def test_cookies_are_kept_by_the_client_and_by_nobody_else(client: Client) -> None:
    assert client.ask("GET", "/web/login").cookies == {"session": "abc", "theme": "dark"}
    fields = dict(client.ask("GET", "/web/echo").json()["fields"])
    assert sorted(fields["cookie"].split("; ")) == ["session=abc", "theme=dark"]
    other = type(client)(client.url)
    assert "cookie" not in dict(other.ask("GET", "/web/echo").json()["fields"])
    other.close()


def test_a_redirect_is_followed_through_the_relay(client: Client) -> None:
    echo = client.ask("POST", "/web/go", data=b"again").json()
    assert echo["length"] == 5
    assert "x-forwarded-host" in dict(echo["fields"])


def test_lines_arrive(client: Client) -> None:
    assert client.lines("/web/lines?count=20") == [f"line {number}" for number in range(20)]


def test_lines_arrive_while_the_upstream_has_not_ended(client: Client) -> None:
    lines = client.lines("/web/events?count=3&holds", last="id: 3")
    assert [line for line in lines if line.startswith("id")] == ["id: 1", "id: 2", "id: 3"]


def test_a_client_that_reads_no_more_frees_the_upstream(
    client: Client, upstreams: Upstreams
) -> None:
    eventually(lambda: upstreams.open == 0)
    assert client.read_and_leave("/web/pour")
    eventually(lambda: upstreams.open == 0)
    assert client.ask("GET", "/web/echo").status == 200


@pytest.mark.parametrize("path", ["/web/breaks", "/web/breaks?length"])
def test_a_body_that_broke_off_raises(client: Client, path: str) -> None:
    with pytest.raises(
        (
            httpx.RemoteProtocolError,
            httpx2.RemoteProtocolError,
            requests.exceptions.ChunkedEncodingError,
            aiohttp.ClientPayloadError,
        )
    ):
        client.ask("GET", path)
