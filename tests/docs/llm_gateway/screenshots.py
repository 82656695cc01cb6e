"""Make the picture of docs/llm-gateway.md: python -m tests.docs.llm_gateway.screenshots."""

from pathlib import Path

from playwright.sync_api import Browser

from examples.llm_gateway.upstream import app as upstream_app
from tests.docs.llm_gateway.browser import WIDE, Chat
from tests.docs.llm_gateway.gateway import gateway_with
from tests.support.chromium import running_chromium
from tests.support.example_apps import ROOT, served, until

FOLDER = ROOT / "docs/images"


def picture(browser: Browser, url: str, path: Path, size: tuple[int, int], *, dark: bool) -> None:
    """A whole answer, one that was stopped, one that died, and one on its way."""
    chat = Chat(browser, url, size=size, dark=dark)
    chat.ask("swift-1", "Who pays for an answer that nobody reads?")
    chat.wait_until_over()
    chat.ask("refuses", "And when the model is overloaded?")
    chat.wait_until_over()
    chat.ask("deep-1", "Say it again, slowly.")
    until(lambda: len(chat.answer().split()) > 8)
    chat.stop()
    chat.wait_until_over()
    chat.ask("dies", "Once more?")
    chat.wait_until_over()
    chat.ask("deep-1", "And now?")
    until(lambda: chat.outcomes()[0] == "Live" and len(chat.answer().split()) > 25)
    chat.page.evaluate("scrollTo(0, 0)")
    chat.page.screenshot(path=path)
    chat.stop()
    chat.wait_until_over()
    chat.close()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with served(upstream_app) as upstream, running_chromium() as browser:
        behind = f"{upstream}/v1"
        with served(gateway_with({"SWIFT_URL": behind, "DEEP_URL": behind})) as url:
            picture(browser, url, FOLDER / "llm-gateway-wide-light.png", WIDE, dark=False)


if __name__ == "__main__":
    main()
