"""docs/errors.md explains log messages and public exceptions, and no message that does not exist.

Other exceptions say themselves what is wrong, so most of them need no entry.
"""

import ast
import re
from collections.abc import Iterator

import pytest

import asgi_upstream
from tests.support.messages import SOURCE, messages
from tests.support.pages import ROOT, headings

PAGE = (ROOT / "docs/errors.md").read_text().split("\n## Messages of other packages")[0]
ENTRIES = re.findall(r"^(?:### |\| )`([^`]+)`", PAGE, re.M)
MESSAGES = {message.text: message for message in messages()}
EXPLAINED = [text for text, message in MESSAGES.items() if message.is_logged]
LONG_ENOUGH = 20  # characters of a message, to be found by


def docstrings() -> Iterator[tuple[str, str]]:
    """Of the classes and functions of the package, with their names."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
                doc := ast.get_docstring(node)
            ):
                yield node.name, doc


def names(entry: str, message: str) -> bool:
    is_prefix = len(entry) >= LONG_ENOUGH and message.startswith(entry.rstrip(" …"))
    return entry == message or is_prefix


@pytest.mark.parametrize("text", EXPLAINED)
def test_each_log_message_of_the_source_has_an_entry(text: str) -> None:
    if not any(names(entry, text) for entry in ENTRIES):
        pytest.fail(
            f"{MESSAGES[text].where} has a message that docs/errors.md does not explain. Add:\n\n"
            f"| `{text}` | WARNING | Cause and fix. |"
        )


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_entry_is_a_message_of_the_source(entry: str) -> None:
    assert any(names(entry, text) for text in MESSAGES)


def test_each_entry_with_a_heading_names_a_fix() -> None:
    for entry in re.split(r"^### (?=`)", PAGE, flags=re.M)[1:]:
        text = entry.split("\n#")[0]
        assert "*Fix:*" in text, text


PUBLIC = (*asgi_upstream.__all__, "relay_websocket", "AsyncioTransport")
DETAILS = {name: getattr(getattr(asgi_upstream, name), "detail", None) for name in PUBLIC[:-2]}
RAISERS = {
    name: doc
    for name, doc in docstrings()
    if name in PUBLIC and (DETAILS.get(name) or re.search(r"\nRaises:\n.*Upstream", doc, re.S))
}
LINK = re.compile(r"\[docs/errors\.md\]\[([\w-]+)\]")


def test_each_link_of_a_docstring_leads_to_a_heading() -> None:
    anchors = {anchor for _, doc in docstrings() for anchor in LINK.findall(doc)}
    assert anchors <= set(headings(ROOT / "docs/errors.md"))


@pytest.mark.parametrize("name", RAISERS)
def test_docstring_that_raises_links_to_its_entry(name: str) -> None:
    """The docstring names the file, and the site has a link to the heading."""
    anchors = LINK.findall(RAISERS[name])
    assert anchors
    if detail := DETAILS.get(name):
        assert f"### `{detail}`\n" in PAGE
        assert re.sub(r"[^\w ]", "", detail.lower()).replace(" ", "-") in anchors


def test_each_kind_of_message_is_found_in_the_source() -> None:
    """A change of style in the source cannot empty the other tests."""
    for text in (
        "The upstream failed",  # a class's detail
        "Invalid path",  # a constant
        "upstream … failed: …",  # a log line
        "…=…: give seconds above 0, or None for none",  # an f-string
        "the client was closed",  # handed to a future
        "the upstream has answered",  # raised by a class in a variable
        "… … …: … after … s",  # an observer's
    ):
        assert text in MESSAGES
