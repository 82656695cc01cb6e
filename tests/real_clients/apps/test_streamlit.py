"""Streamlit: an upload, pictures and other media, and a large element by WebSocket."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.real_clients.apps.site import (
    Recipe,
    Site,
    Visitor,
    download,
    run,
    serve,
    skip_without,
)
from tests.real_clients.upstreams import ASYNCIO
from tests.support.waiting import eventually

pytestmark = skip_without("streamlit")

APP = """
import hashlib, io, time, wave
import numpy, pandas, streamlit

streamlit.title("Numbers")
presses = streamlit.session_state.setdefault("presses", 0)
if streamlit.button("Press"):
    streamlit.session_state.presses += 1
streamlit.write("Pressed", streamlit.session_state.presses)
sent = streamlit.file_uploader("Send")
if sent is not None:
    streamlit.write("Digest", hashlib.sha256(sent.getvalue()).hexdigest())
    streamlit.download_button("Get it back", sent.getvalue(), "back.bin")
streamlit.image(numpy.full((20, 30, 3), 200, dtype="uint8"), caption="grey")
audio = io.BytesIO()
with wave.open(audio, "wb") as sound:
    sound.setparams((1, 1, 8000, 8000, "NONE", ""))
    sound.writeframes(bytes(8000))
streamlit.audio(audio.getvalue(), format="audio/wav")
if streamlit.checkbox("Large"):
    streamlit.dataframe(pandas.DataFrame({"a": ["x" * 1000] * 25_000}))
    streamlit.write("All", "there")
if streamlit.checkbox("Busy"):
    place = streamlit.empty()
    try:
        for number in range(10_000):
            place.write(f"Busy at {number}")
            time.sleep(0.05)
    finally:
        open("ended", "w").write("yes")
"""


def prepare(home: Path) -> None:
    (home / "app.py").write_text(APP)


RECIPE = Recipe(
    "streamlit",
    "/st",
    lambda port: [
        *("streamlit", "run", "app.py", f"--server.port={port}", "--server.address=127.0.0.1"),
        *("--server.headless=true", "--browser.gatherUsageStats=false"),
    ],
    {"preserve_host": True},
)


def open_app(visitor: Visitor) -> Page:
    page = visitor.open()
    page.get_by_text("Pressed").wait_for()
    page.get_by_role("img").first.wait_for()
    return page


def press(page: Page) -> None:
    page.get_by_role("button", name="Press").click()


def says(page: Page, text: str) -> bool:
    return text in (page.locator("body").text_content() or "")


def test_button_runs_the_script_again(visitor: Visitor) -> None:
    page = open_app(visitor)
    for number in (1, 2):
        press(page)
        eventually(lambda number=number: says(page, f"Pressed {number}"))  # type: ignore[misc]
    page.reload()
    eventually(lambda: says(page, "Pressed 0"))  # a new session


def test_uploaded_file_comes_back_unchanged(visitor: Visitor) -> None:
    page, data = open_app(visitor), bytes(range(256)) * 40_000
    file = {"name": "sent.bin", "mimeType": "application/octet-stream", "buffer": data}
    page.locator("input[type=file]").set_input_files(file)  # type: ignore[arg-type]
    digest = hashlib.sha256(data).hexdigest()
    eventually(lambda: says(page, digest))
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Get it back").click()
    assert downloading.value.path().read_bytes() == data


def test_pictures_and_sound_are_loaded(visitor: Visitor) -> None:
    page = open_app(visitor)
    width = "document.querySelector('[data-testid=stImage] img, img')?.naturalWidth"
    eventually(lambda: page.evaluate(width) == 30)
    address = page.locator("audio").get_attribute("src")
    assert address is not None
    assert f"{visitor.site.recipe.mount}/media/" in address
    answer = run(
        page,
        """
        const answer = await fetch(args[0], {headers: {range: "bytes=0-43"}});
        return [answer.status, (await answer.arrayBuffer()).byteLength];
        """,
        address,
    )
    assert answer == [206, 44]
    assert download(page, address)[:4] == b"RIFF"


def test_element_of_25_mb_arrives(visitor: Visitor) -> None:
    page = open_app(visitor)
    page.get_by_text("Large", exact=True).click()
    eventually(lambda: says(page, "All there"))
    assert page.get_by_test_id("stDataFrame").count() == 1


def test_three_tabs_have_a_session_each(visitor: Visitor) -> None:
    pages = [open_app(visitor) for _ in range(3)]
    for number, page in enumerate(pages):
        for _ in range(number):
            press(page)
            page.wait_for_timeout(500)
    for number, page in enumerate(pages):
        eventually(lambda p=page, n=number: says(p, f"Pressed {n}"))  # type: ignore[misc]


def test_closed_tab_ends_the_script(visitor: Visitor, site: Site) -> None:
    ended = site.application.home / "ended"
    page = open_app(visitor)
    page.get_by_text("Busy", exact=True).click()
    eventually(lambda: says(page, "Busy at 3"))
    ended.unlink(missing_ok=True)
    assert site.open_exchanges == 1
    page.close()
    site.wait_until_idle()
    eventually(ended.exists)


def test_page_connects_again_after_a_restart(visitor: Visitor, site: Site) -> None:
    visitor.expected = ("502 ", "403 ")  # while it is away
    page = open_app(visitor)
    for number in (1, 2):
        press(page)
        eventually(lambda number=number: says(page, f"Pressed {number}"))  # type: ignore[misc]
    site.application.restart()
    eventually(lambda: site.open_exchanges == 1)
    press(page)
    eventually(lambda: says(page, "Pressed 1"))


@pytest.mark.parametrize("path", ["", "/"])
def test_short_addresses_lead_to_the_app(visitor: Visitor, path: str) -> None:
    page = visitor.open(path)
    page.get_by_text("Pressed").wait_for()
    assert page.url == f"{visitor.site.url}/"


def test_handshake_without_preserve_host_is_refused(browser: Browser, tmp_path: Path) -> None:
    prepare(tmp_path)
    with serve(replace(RECIPE, options={}), tmp_path, ASYNCIO) as site:
        site.use(browser)
        page = browser.new_page()
        page.goto(f"{site.url}/")
        eventually(lambda: "use preserve_host=True" in site.proxy_log())
        page.close()
