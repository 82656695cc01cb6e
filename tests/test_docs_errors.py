"""docs/errors.md has every message of the package, and none that is not the package's."""

import re

import pytest

from tests.messages import messages
from tests.test_examples import ROOT

PAGE = (ROOT / "docs/errors.md").read_text().split("\n## Messages of others")[0]
ENTRIES = re.findall(r"^(?:### |\| )`([^`]+)`", PAGE, re.M)
MESSAGES = {message.text: message for message in messages()}
LONG_ENOUGH = 20  # characters of a message, to be found by


def names(entry: str, message: str) -> bool:
    is_prefix = len(entry) >= LONG_ENOUGH and message.startswith(entry.rstrip("…"))
    return entry == message or is_prefix


@pytest.mark.parametrize("text", MESSAGES)
def test_each_message_of_the_source_is_on_the_page_of_errors(text: str) -> None:
    if not any(names(entry, text) for entry in ENTRIES):
        pytest.fail(
            f"{MESSAGES[text].where} has a message that docs/errors.md does not explain. Add:\n\n"
            f"### `{text}`\n\n*Cause:* ... *Fix:* ..."
        )


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_entry_of_the_page_is_a_message_of_the_source(entry: str) -> None:
    assert any(names(entry, text) for text in MESSAGES)


def test_each_entry_with_a_heading_says_what_to_do() -> None:
    for entry in re.split(r"^### (?=`)", PAGE, flags=re.M)[1:]:
        text = entry.split("\n#")[0]
        assert "*Fix" in text or "*Cause and fix" in text, text


def test_the_walk_finds_messages_of_each_kind() -> None:
    """So that a change of style in the source cannot empty the test."""
    for text in (
        "The upstream failed",  # a class's detail
        "The path is not one that is forwarded",  # a constant
        "upstream … failed: …",  # a log line
        "deadline=…: give seconds above 0, or None for none",  # an f-string
        "the client was closed",  # handed to a future
        "the upstream has answered",  # raised by a class in a variable
        "… … …: … after … s",  # an observer's
    ):
        assert text in MESSAGES
