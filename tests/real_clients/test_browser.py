"""A browser: fetch and EventSource in Chromium, on a page that comes through the relay too."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.real_clients.upstreams import Upstreams, both_transports
from tests.support.chromium import running_chromium
from tests.support.waiting import eventually

pytestmark = [pytest.mark.chromium, both_transports]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """An empty page of the relay's. None may leave an error in the console."""
    page, said = browser.new_page(), list[str]()
    page.set_default_timeout(60_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{url}/web/page")
    yield page
    page.close()
    assert said == []


def run(page: Page, script: str) -> Any:
    return page.evaluate(f"async () => {{ {script} }}")


def test_fetch_reads_a_stream_as_it_comes(page: Page) -> None:
    # The upstream goes silent, and never ends it.
    assert (
        run(
            page,
            """
            const answer = await fetch("/web/events?count=5&holds");
            const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
            let text = "";
            while (!text.includes('"number": 5')) text += (await reader.read()).value;
            await reader.cancel();
            return text;
            """,
        ).count("data:")
        == 5
    )


def test_fetch_of_plain_text_reads_a_stream_as_it_comes(page: Page) -> None:
    parts = run(
        page,
        """
        const answer = await fetch("/web/lines?count=20");
        const reader = answer.body.getReader();
        let parts = 0;
        while (!(await reader.read()).done) parts++;
        return parts;
        """,
    )
    assert parts > 1


def test_fetch_sends_a_form_with_a_file(page: Page) -> None:
    said = run(
        page,
        """
        const form = new FormData(), bytes = new Uint8Array(2_000_000);
        for (let at = 0; at < bytes.length; at++) bytes[at] = at % 251;
        form.set("name", "Ann");
        form.set("file", new Blob([bytes]), "ü.bin");
        return await (await fetch("/web/form", {method: "POST", body: form})).json();
        """,
    )
    sent = hashlib.sha256(bytes(at % 251 for at in range(2_000_000)))
    assert said == {"name": ["Ann"], "file": ["ü.bin", sent.hexdigest()]}


def test_fetch_that_is_aborted_frees_the_upstream(page: Page, upstreams: Upstreams) -> None:
    eventually(lambda: upstreams.open == 0)
    name = run(
        page,
        """
        const control = new AbortController();
        const asked = fetch("/web/silent", {signal: control.signal});
        setTimeout(() => control.abort(), 300);
        return await asked.then(() => "answered", error => error.name);
        """,
    )
    assert name == "AbortError"
    eventually(lambda: upstreams.open == 0)


@pytest.mark.parametrize("path", ["/web/breaks", "/web/breaks?length"])
def test_fetch_sees_that_a_body_broke_off(browser: Browser, url: str, path: str) -> None:
    page = browser.new_page()  # whose console tells of it
    page.goto(f"{url}/web/page")
    script = f'return await (await fetch("{path}")).text().then(() => "", error => error.name)'
    assert run(page, script) == "TypeError"
    page.close()


EVENT_SOURCE = """
    return await new Promise((resolve, reject) => {
        const source = new EventSource("%s"), numbers = [];
        source.onmessage = event => {
            numbers.push(JSON.parse(event.data).number);
            if (numbers.length == 6) { source.close(); resolve(numbers); }
        };
        setTimeout(() => reject(new Error("too late: " + numbers)), 9000);
    });
"""


def test_event_source_that_closes_frees_the_upstream(page: Page, upstreams: Upstreams) -> None:
    eventually(lambda: upstreams.open == 0)
    assert run(page, EVENT_SOURCE % "/web/events") == [1, 2, 3, 4, 5, 6]
    eventually(lambda: upstreams.open == 0)


def test_event_source_continues_after_the_last_event(page: Page) -> None:
    # Each stream ends after two. The browser asks again, with Last-Event-ID.
    assert run(page, EVENT_SOURCE % "/web/events?count=2") == [1, 2, 3, 4, 5, 6]


def test_cookies_of_the_upstream_are_kept_by_the_browser(page: Page) -> None:
    fields = run(
        page,
        """
        await fetch("/web/login");
        return (await (await fetch("/web/echo")).json()).fields;
        """,
    )
    assert ["cookie", "session=abc; theme=dark"] in fields


def test_a_download_has_the_name_and_the_bytes_of_the_upstreams(
    page: Page, upstreams: Upstreams
) -> None:
    (upstreams.folder / "report.csv").write_bytes(b"a,b\n" * 10_000)
    with page.expect_download() as downloading:
        run(
            page,
            """
            const link = document.createElement("a");
            link.href = "/web/files/report.csv";
            link.download = "";
            link.click();
            """,
        )
    path = downloading.value.path()
    assert downloading.value.suggested_filename == "report.csv"
    assert path.read_bytes() == b"a,b\n" * 10_000
