"""Gradio: a streaming function, an upload, and a tab that is closed while it streams."""

import hashlib
from pathlib import Path

from playwright.sync_api import Page

from tests.real_clients.apps.site import Recipe, Site, Visitor, download, skip_without
from tests.support.waiting import eventually

pytestmark = skip_without("gradio")

APP = """
import hashlib, sys, time
import gradio

def count(to):
    try:
        for number in range(1, int(to) + 1):
            time.sleep(0.05)
            yield " ".join(str(n) for n in range(1, number + 1))
    finally:
        open("ended", "w").write("yes")

def sleep(seconds):
    time.sleep(float(seconds))
    return "awake"

def digest(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest(), path

with gradio.Blocks() as app:
    to, counted = gradio.Textbox(label="To"), gradio.Textbox(label="Counted")
    gradio.Button("Count").click(count, to, counted)
    gradio.Button("Sleep").click(sleep, to, counted)
    sent, said = gradio.File(label="Sent"), gradio.Textbox(label="Digest")
    back = gradio.File(label="Back")
    sent.upload(digest, sent, [said, back])

app.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), root_path="/gradio")
"""


def prepare(home: Path) -> None:
    (home / "app.py").write_text(APP)


RECIPE = Recipe(
    "gradio",
    "/gradio",
    lambda port: ["python", "app.py", str(port)],
    environment={"GRADIO_ANALYTICS_ENABLED": "False"},
)


def open_app(visitor: Visitor) -> Page:
    page = visitor.open()
    page.get_by_role("button", name="Count").wait_for()
    return page


def count(page: Page, to: int, button: str = "Count") -> None:
    page.get_by_label("To", exact=True).fill(str(to))
    page.get_by_role("button", name=button).click()


def counted(page: Page) -> str:
    return page.get_by_label("Counted").input_value()


def numbers(to: int) -> str:
    return " ".join(map(str, range(1, to + 1)))


def test_streamed_output_appears_while_it_is_made(visitor: Visitor) -> None:
    page = open_app(visitor)
    count(page, 100)
    eventually(lambda: counted(page).startswith("1 2 3"))
    assert counted(page) != numbers(100)
    eventually(lambda: counted(page) == numbers(100))
    page.reload()
    page.get_by_role("button", name="Count").wait_for()
    assert counted(page) == ""


def test_result_after_8_seconds_of_silence_arrives(visitor: Visitor) -> None:
    page = open_app(visitor)
    count(page, 8, "Sleep")
    eventually(lambda: counted(page) == "awake")


def test_uploaded_file_comes_back_unchanged(visitor: Visitor) -> None:
    page, data = open_app(visitor), bytes(range(256)) * 40_000
    file = {"name": "sent.bin", "mimeType": "application/octet-stream", "buffer": data}
    page.locator("input[type=file]").first.set_input_files(file)  # type: ignore[arg-type]
    digest = hashlib.sha256(data).hexdigest()
    eventually(lambda: page.get_by_label("Digest").input_value() == digest)
    link = page.locator("a[href*='/gradio_api/file='][href$='sent.bin']").last
    address = link.get_attribute("href")
    assert address is not None
    assert address.startswith(visitor.site.url)
    assert download(page, address) == data


def test_three_tabs_count_at_once(visitor: Visitor) -> None:
    pages = [open_app(visitor) for _ in range(3)]
    for number, page in enumerate(pages):
        count(page, 10 + number)
    for number, page in enumerate(pages):
        eventually(lambda page=page, to=10 + number: counted(page) == numbers(to))  # type: ignore[misc]


def test_closed_tab_ends_the_function_that_streams(visitor: Visitor, site: Site) -> None:
    ended = site.application.home / "ended"
    page = open_app(visitor)
    count(page, 10_000)
    eventually(lambda: counted(page).startswith("1 2 3"))
    ended.unlink(missing_ok=True)
    assert site.open_exchanges > 0
    page.close()
    site.wait_until_idle()
    eventually(ended.exists)


def test_page_works_again_after_a_restart(visitor: Visitor, site: Site) -> None:
    visitor.expected = ("502 ",)  # while it is away
    page = open_app(visitor)
    site.application.restart()
    page.reload()
    count(page, 3)
    eventually(lambda: counted(page) == numbers(3))
