"""Every message that the package raises, answers with or logs, found in its source."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src/asgi_upstream"
LOGS = ("debug", "info", "warning", "error", "exception", "critical", "log")
LOGGERS = ("logger", "log")
ENDS = ("Error", "Timeout", "Exception", "Protocol", "Consumed", "Mismatch", "Exhausted")
_VALUE = re.compile(r"%[srdg]|%\.\d+f")


@dataclass(frozen=True)
class Message:
    text: str  # with … in place of each value
    where: str
    is_logged: bool  # above DEBUG


def messages() -> Iterator[Message]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for text in _texts(node):
                where = f"{path.relative_to(SOURCE.parent)}:{getattr(node, 'lineno', 0)}"
                is_logged = _logs(node) and _name(getattr(node, "func", node)) != "debug"
                yield Message(" ".join(text.split()), where, is_logged)


def _logs(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    return _name(node.func) in LOGS and _name(getattr(node.func, "value", node)) in LOGGERS


def _texts(node: ast.AST) -> Iterator[str]:
    """The texts of one node: of an exception or a log line that is made, or of a `detail`."""
    if isinstance(node, ast.Call):
        name = _name(node.func)
        if _logs(node) or name == "add_note" or _makes_exception(name):
            for argument in node.args[:2]:
                if (text := _template(argument)) is not None:
                    yield text
                    break
    elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        if not _makes_exception(_name(node.exc.func)):  # of a class in a variable
            yield from filter(None, map(_template, node.exc.args))
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        named = any(
            _name(target) in ("detail", "_PATH_REJECTED", "_MISSING_CLIENT") for target in targets
        )
        if named and node.value is not None and (text := _template(node.value)) is not None:
            yield text


def _name(node: ast.AST) -> str:
    return getattr(node, "attr", None) or getattr(node, "id", None) or ""


def _makes_exception(name: str) -> bool:
    return name[:1].isupper() and name.endswith(ENDS)


def _template(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _VALUE.sub("…", node.value) or None
    if isinstance(node, ast.JoinedStr):
        parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
        return "".join(map(str, parts))
    return None
