"""What `python -m asgi_upstream` prints, for a bug report."""

import platform
import subprocess
import sys
from importlib.metadata import version

import pytest

from asgi_upstream import __main__ as main


@pytest.mark.process
def test_it_prints_the_versions_of_python_and_of_each_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "asgi_upstream"], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line)
    assert printed["Python"].startswith(platform.python_version())
    assert printed["platform"] == platform.platform()
    for name in ("asgi-upstream", "httpx", "starlette", "anyio", "uvicorn"):
        assert printed[name] == version(name)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "PACKAGES", (("anyio", "no-such-package"),))
    assert list(main.report_lines())[2:] == [
        "",
        f"anyio              {version('anyio')}",
        "no-such-package    not installed",
        "",
        "transport          AsyncioTransport by default: no option needs httpx's transport",
        "errors             docs/errors.md explains each message",
    ]
