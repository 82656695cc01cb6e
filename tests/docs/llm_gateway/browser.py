"""The gateway's page in Chromium."""

import json
from collections.abc import Callable

from playwright.sync_api import Browser, Page, Route, expect

from tests.support.example_apps import until

WIDE, NARROW = (1280, 800), (390, 844)
PATIENCE = 60_000  # milliseconds
expect.set_options(timeout=PATIENCE)


class Chat:
    """The page at the gateway, with a key given, and what its console said."""

    def __init__(
        self,
        browser: Browser,
        url: str,
        *,
        key: str = "key-of-ann",
        size: tuple[int, int] = WIDE,
        dark: bool = False,
    ) -> None:
        self._context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        self._context.set_default_timeout(PATIENCE)
        self.page: Page = self._context.new_page()
        self.said: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on(
            "request",
            lambda sent: None if sent.url.startswith(url) else self.elsewhere.append(sent.url),
        )
        self.page.goto(url)
        self.give_key(key)

    def close(self) -> None:
        self._context.close()

    def give_key(self, key: str) -> None:
        self.page.get_by_label("Your key").fill(key)
        self.page.get_by_role("button", name="Use it").click()

    def lengthen_answers(self, tokens: int) -> None:
        """Have them last until they are stopped, as the page itself does not ask for."""

        def lengthen(route: Route) -> None:
            asked = json.loads(route.request.post_data or "{}")
            route.continue_(post_data=json.dumps(asked | {"max_tokens": tokens}))

        self.page.route("**/chat/completions", lengthen)

    def ask(self, model: str, prompt: str = "Why should a gateway stop the model?") -> None:
        self.page.get_by_label("Model").select_option(model)
        self.page.get_by_label("Message").fill(prompt)
        self.page.get_by_role("button", name="Send").click()

    def stop(self) -> None:
        self.page.get_by_role("button", name="Stop").click()

    def wait_until_over(self) -> None:
        self.page.locator("[aria-busy]").wait_for(state="detached")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition outside of the page.

        playwright calls the handlers of routes only inside of its own calls. Without one, a request
        that `lengthen_answers` changes would never be sent.
        """

        def check() -> bool:
            self.page.evaluate("null")
            return condition()

        until(check, 60)

    def answer(self) -> str:
        """The last answer, as far as it has come."""
        return self.page.locator(".said:not(.own) .words").last.text_content() or ""

    def outcomes(self) -> list[str]:
        """How the exchanges on the list ended, the newest first."""
        return self.page.locator("#exchanges .outcome").all_text_contents()
