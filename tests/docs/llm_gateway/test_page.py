"""The gateway's page, in a real Chromium."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from examples.llm_gateway.callers import CALLERS
from examples.llm_gateway.model import DIES_AFTER, WORDS
from tests.docs.llm_gateway.browser import NARROW, WIDE, Chat
from tests.docs.llm_gateway.gateway import DEEP, ModelUpstream, Serve
from tests.support.chromium import CHROMIUM, running_chromium
from tests.support.example_apps import until

pytestmark = [
    pytest.mark.chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]

LONG = 10_000  # tokens
Open = Callable[..., Chat]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser, gateway: str) -> Iterator[Open]:
    """The page with a key given. No test may leave a word in its console, or ask another host."""
    with ExitStack() as stack:

        def opened(*, url: str = gateway, may_say: str = "", **options: Any) -> Chat:
            chat = Chat(browser, url, **options)
            stack.callback(check, chat, may_say)
            return chat

        def check(chat: Chat, may_say: str) -> None:
            chat.close()
            assert [said for said in chat.said if not may_say or may_say not in said] == []
            assert chat.elsewhere == []

        yield opened


@pytest.fixture
def chat(open_page: Open) -> Chat:
    return open_page()


# Tokens


def test_page_shows_tokens_one_by_one(chat: Chat, upstream: ModelUpstream) -> None:
    chat.page.evaluate(
        """() => {
            window.seen = [];
            new MutationObserver(() => {
                const words = document.querySelector(".said:not(.own) .words")?.textContent;
                if (words && words !== seen.at(-1)) seen.push(words);
            }).observe(document.getElementById("log"), { childList: true, subtree: true });
        }"""
    )
    chat.ask("deep-1")
    until(lambda: len(chat.page.evaluate("seen")) >= 5)
    assert upstream.at_work(DEEP) == 1
    for number, words in enumerate(chat.page.evaluate("seen"), 1):
        assert words.split() == WORDS[:number]
    chat.stop()


def test_page_shows_a_whole_answer_with_its_pace(chat: Chat) -> None:
    chat.ask("swift-1")
    chat.wait_until_over()
    assert chat.answer().split() == WORDS
    first, rate, count = chat.page.locator("#pace dd").all_text_contents()
    assert first.endswith((" ms", " s"))
    assert float(rate) > 0
    assert int(count) == len(WORDS)


def test_page_sends_the_conversation_with_each_message(chat: Chat, gateway: str) -> None:
    bodies: list[Any] = []
    chat.page.on(
        "request",
        lambda sent: bodies.append(sent.post_data_json) if sent.method == "POST" else None,
    )
    for prompt in ("one", "two"):
        chat.ask("swift-1", prompt)
        chat.wait_until_over()
    roles = [[message["role"] for message in body["messages"]] for body in bodies]
    assert roles == [["user"], ["user", "assistant", "user"]]


def test_page_shows_markup_of_a_model_as_text(chat: Chat) -> None:
    chat.ask("swift-1", "<img src=x onerror=alert(1)>")
    chat.wait_until_over()
    assert chat.page.locator(".said.own .words").text_content() == "<img src=x onerror=alert(1)>"


# Stop


def test_stop_button_stops_the_upstream(chat: Chat, upstream: ModelUpstream) -> None:
    before = upstream.made(DEEP)
    chat.lengthen_answers(LONG)
    chat.ask("deep-1")
    until(lambda: len(chat.answer().split()) >= 3)
    chat.stop()
    until(lambda: upstream.at_work(DEEP) == 0)
    made = upstream.made(DEEP) - before
    assert 3 <= made < LONG
    chat.page.get_by_text("You stopped it here.").wait_for()
    until(lambda: chat.outcomes()[:1] == ["You stopped it"])
    assert len(chat.answer().split()) <= made
    expect(chat.page.get_by_role("button", name="Stop")).to_be_disabled()


def test_stop_button_before_the_first_token_stops_the_upstream(
    chat: Chat, upstream: ModelUpstream
) -> None:
    chat.ask("slow")
    until(lambda: chat.outcomes()[:1] == ["Live"])
    chat.stop()
    until(lambda: chat.outcomes()[:1] == ["You left before it began"])
    assert chat.answer() == ""


def test_closed_page_stops_the_upstream(chat: Chat, upstream: ModelUpstream) -> None:
    chat.lengthen_answers(LONG)
    chat.ask("deep-1")
    chat.wait_until(lambda: upstream.at_work(DEEP) == 1)
    chat.page.close()
    until(lambda: upstream.at_work(DEEP) == 0)


# Failures


def test_page_shows_an_error_below_a_broken_answer(chat: Chat) -> None:
    chat.ask("dies")
    alert = chat.page.get_by_role("alert")
    expect(alert).to_have_text("The model broke off in the middle of its answer")
    assert chat.answer().split() == WORDS[:DIES_AFTER]
    until(lambda: chat.outcomes()[:1] == ["Upstream died"])
    chat.ask("swift-1")  # it goes on from there
    chat.wait_until_over()
    assert chat.answer().split() == WORDS


def test_page_shows_an_error_below_a_late_answer(open_page: Open, serve: Serve) -> None:
    chat = open_page(url=serve(DEADLINE="1"))
    chat.ask("deep-1")
    chat.page.get_by_role("alert").get_by_text("took too long").wait_for()
    until(lambda: chat.outcomes()[:1] == ["Took too long"])


def test_page_shows_a_refusal_of_the_upstream(open_page: Open) -> None:
    chat = open_page(may_say="status of 429")  # Chromium's own line for each such answer
    chat.ask("refuses")
    chat.page.get_by_role("alert").get_by_text("The model is overloaded").wait_for()
    until(lambda: chat.outcomes()[:1] == ["Answered 429"])


def test_page_shows_that_no_tokens_are_left(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CALLERS["key-of-ann"], "tokens_left", 0)
    chat = open_page(may_say="status of 429")
    chat.ask("swift-1")
    chat.page.get_by_role("alert").get_by_text("no tokens left").wait_for()


def test_page_disables_send_for_an_unknown_key(open_page: Open) -> None:
    chat = open_page(key="key-of-nobody", may_say="status of 401")
    chat.page.get_by_text("Not accepted: unknown key").wait_for()
    expect(chat.page.get_by_role("button", name="Send")).to_be_disabled()
    chat.give_key("key-of-bob")
    chat.page.get_by_text("Key accepted").wait_for()
    expect(chat.page.get_by_role("button", name="Send")).to_be_enabled()


# The list


def test_page_lists_own_live_exchanges(open_page: Open) -> None:
    ann, bob = open_page(), open_page(key="key-of-bob")
    bob_had = bob.outcomes()
    ann.lengthen_answers(LONG)
    ann.ask("deep-1")
    until(lambda: ann.outcomes()[:1] == ["Live"])
    tokens = ann.page.locator("#exchanges li").first.locator(".facts")
    until(lambda: int((tokens.text_content() or "0").split()[0]) >= 3)  # it counts on while live
    for _ in range(2):  # when the second answer comes, the first is shown
        with bob.page.expect_response("**/exchanges"):
            pass
    assert bob.outcomes() == bob_had
    ann.stop()


# Looks


@pytest.mark.parametrize(
    ("size", "dark"),
    [
        pytest.param(WIDE, False, id="wide-light"),
        pytest.param(WIDE, True, id="wide-dark", marks=pytest.mark.slow),
        pytest.param(NARROW, False, id="narrow-light", marks=pytest.mark.slow),
        pytest.param(NARROW, True, id="narrow-dark"),
        pytest.param((320, 568), False, id="tiny-light"),
        pytest.param((320, 568), True, id="tiny-dark", marks=pytest.mark.slow),
    ],
)
def test_page_fits_and_has_contrast(open_page: Open, size: tuple[int, int], dark: bool) -> None:
    chat = open_page(size=size, dark=dark)
    chat.ask("dies", "x" * 300)
    chat.wait_until_over()
    until(lambda: bool(chat.outcomes()))
    looks = chat.page.evaluate(LOOKS)
    assert looks["wider"] <= 0
    assert looks["taller"] <= 0 or size != WIDE
    assert looks["chatBelow"] <= 0 or size not in (WIDE, NARROW)  # all of it on the first screen
    assert looks["covered"] == []
    assert looks["faint"] == []
    assert (looks["ground"] < 0.1) if dark else (looks["ground"] > 0.8)
    beside = looks["chat"]["right"] <= looks["exchanges"]["left"]
    below = looks["chat"]["bottom"] <= looks["exchanges"]["top"]
    assert (beside, below) == ((True, False) if size == WIDE else (False, True))


# How much larger than the screen it is; the controls that stick out or have no room; the texts with
# a contrast under 4.5 (WCAG 1.4.3), disabled ones aside; the ground's luminance; where parts are.
LOOKS = """() => {
    const channel = (c) => ((c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const luminance = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).map(Number);
        return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    };
    const groundOf = (element) => {
        const color = getComputedStyle(element).backgroundColor;
        return color === "rgba(0, 0, 0, 0)" ? groundOf(element.parentElement) : color;
    };
    const contrast = (element) => {
        const one = luminance(getComputedStyle(element).color);
        const other = luminance(groundOf(element));
        return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    };
    const texts = [...document.querySelectorAll("body *")].filter(
        (element) => !element.disabled && !element.closest(":disabled") &&
            [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
    const controls = [...document.querySelectorAll("input, select, textarea, button")];
    const box = (selector) => document.querySelector(selector).getBoundingClientRect().toJSON();
    return {
        taller: document.documentElement.scrollHeight - innerHeight,
        chatBelow: box(".chat").bottom + scrollY - innerHeight,
        wider: document.documentElement.scrollWidth - innerWidth,
        covered: controls.filter((element) => {
            const { left, right } = element.getBoundingClientRect();
            const around = element.closest("section, header").getBoundingClientRect();
            return left < around.left || right > around.right - 8 || right - left < 60;
        }).map((element) => element.id),
        faint: texts.filter((element) => contrast(element) < 4.5).map((e) => e.textContent),
        ground: luminance(groundOf(document.body)),
        chat: box(".chat"),
        exchanges: box(".exchanges"),
    };
}"""


def test_page_works_by_keyboard_alone(chat: Chat, upstream: ModelUpstream) -> None:
    chat.lengthen_answers(LONG)
    page = chat.page
    page.get_by_label("Model").select_option("deep-1")
    page.get_by_label("Message").focus()
    page.keyboard.type("Go on")
    page.keyboard.press("Enter")
    chat.wait_until(lambda: upstream.at_work(DEEP) == 1)
    for _ in range(10):
        if page.evaluate("document.activeElement.id") == "stop":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    until(lambda: upstream.at_work(DEEP) == 0)
    chat.wait_until_over()
    expect(page.get_by_label("Message")).to_be_focused()


def test_page_names_every_control_for_screen_readers(chat: Chat) -> None:
    chat.ask("swift-1")
    chat.wait_until_over()
    tree = chat.page.locator("body").aria_snapshot()
    for part in (
        'heading "LLM gateway"',
        'textbox "Your key"',
        'textbox "Message"',
        'combobox "Model"',
        'log "Conversation"',
        'region "Your exchanges"',
        "list",
        "status: Key accepted",
    ):
        assert part in tree, tree


def test_page_policy_allows_no_other_origin(gateway: str) -> None:
    policy = httpx.get(gateway, trust_env=False).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
