"""OAuth2 client credentials by authlib: one token for a hundred callers at once."""

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from examples.upstream import app as upstream_of_examples
from tests.compositions.upstream import Tokens, tokens
from tests.support.example_apps import imported, served
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

pytestmark = pytest.mark.no_leaks


@pytest.fixture
def caller(upstream: Upstream) -> Iterator[httpx.Client]:
    """Calls examples/compositions/authentication.py, which has no token yet."""
    vars(tokens).update(vars(Tokens()))
    app = imported("compositions.authentication", upstream.url)
    with served(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as caller:
        yield caller


def test_the_example_has_a_token_of_the_upstream_of_the_examples() -> None:
    with served(upstream_of_examples) as url:
        app = imported("compositions.authentication", url)
        with served(app) as own_url:
            response = httpx.get(f"{own_url}/api/headers", trust_env=False)
    assert response.json()["authorization"] == "Bearer of-the-app"


def hundred(caller: httpx.Client) -> Counter[int]:
    """The statuses that a hundred callers get at once."""
    with ThreadPoolExecutor(100) as pool:
        asking = [pool.submit(caller.get, "/api/guarded") for _ in range(100)]
        return Counter(future.result().status_code for future in asking)


def test_a_hundred_callers_at_once_have_one_token(caller: httpx.Client) -> None:
    assert hundred(caller) == {200: 100}
    assert hundred(caller) == {200: 100}
    assert tokens.issued == 1


def test_expired_token_is_renewed_once_for_a_hundred_callers(caller: httpx.Client) -> None:
    tokens.lifetime = 59  # authlib renews a minute before the end
    assert caller.get("/api/guarded").status_code == 200
    tokens.lifetime = 3600
    assert hundred(caller) == {200: 100}
    assert tokens.issued == 2


def test_revoked_token_is_renewed_once_for_a_hundred_callers(
    caller: httpx.Client,
) -> None:
    assert caller.get("/api/guarded").status_code == 200
    tokens.valid = "another"
    assert hundred(caller) == {200: 100}
    assert tokens.issued == 2


def test_late_refusal_of_an_old_token_does_not_renew_it_again(
    caller: httpx.Client, upstream: Upstream
) -> None:
    assert caller.get("/api/guarded").status_code == 200
    tokens.valid = "another"
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(caller.get, "/api/guarded?late=0.5")
        eventually(lambda: "late" in upstream.requests[-1].query)
        assert caller.get("/api/guarded").status_code == 200
        assert late.result().status_code == 200
    assert tokens.issued == 2


def test_an_upload_that_is_refused_is_not_sent_again(caller: httpx.Client) -> None:
    assert caller.get("/api/guarded").status_code == 200
    tokens.valid = "another"
    assert caller.post("/api/guarded", content=b"upload").status_code == 401
    assert caller.get("/api/guarded").status_code == 200
    assert caller.post("/api/guarded", content=b"upload").status_code == 200


@pytest.mark.parametrize(
    "refusal",
    [
        b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 401 No\r\ncontent-type: application/json\r\ncontent-length: 26\r\n\r\n"
        b'{"error":"invalid_client"}',
    ],
    ids=["fails", "refuses"],
)
def test_without_a_token_the_answer_is_502_and_names_nothing(
    caller: httpx.Client, upstream: Upstream, refusal: bytes
) -> None:
    tokens.refusal = refusal
    response = caller.get("/api/guarded")
    assert response.status_code == 502
    assert not re.search("token|secret|127", response.text)
    tokens.refusal = b""
    assert caller.get("/api/guarded").status_code == 200


def test_what_a_caller_gives_as_credentials_is_not_sent_on(
    caller: httpx.Client, upstream: Upstream
) -> None:
    response = caller.get("/api/guarded", headers={"authorization": "Bearer mine"})
    assert response.status_code == 200
    assert b"Bearer mine" not in upstream.requests[-1].head
    assert b"secret" not in upstream.requests[-1].head


def test_disconnect_during_the_token_request_delays_no_caller(
    caller: httpx.Client,
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        caller.get("/api/guarded", timeout=0.05)
    assert hundred(caller) == {200: 100}
    assert tokens.issued <= 2
