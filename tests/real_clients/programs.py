"""Programs of others, as processes: found or skipped by name, run, and ended."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.servers import ROOT
from tests.support.waiting import eventually

PATH = os.environ.get("PATH", "") + ":/usr/sbin"


def program(name: str) -> str:
    """Where it is; the test is skipped where it is not."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"there is no {name} on this machine")
    return found


def clean_environment(home: Path) -> dict[str, str]:
    """No settings of the user's or the machine's, so that a run is the same everywhere."""
    return {
        "PATH": PATH,
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": f"{ROOT}/src:{ROOT}",
        "PIP_CONFIG_FILE": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "RCLONE_CONFIG": os.devnull,
    }


def run(
    *command: str | Path,
    home: Path,
    code: int | None = 0,
    data: bytes | None = None,
    environment: dict[str, str] | None = None,
    timeout: float = 300,
) -> "subprocess.CompletedProcess[bytes]":
    """Run it in `home` to its end, which must come in time and with that exit code."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=home,
        env=clean_environment(home) | (environment or {}),
        input=b"" if data is None else data,
        capture_output=True,
        timeout=timeout,
    )
    if code is not None:
        assert done.returncode == code, (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
    return done


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def listening(
    command: Sequence[str | Path], port: int, home: Path, environment: dict[str, str] | None = None
) -> Iterator[None]:
    """A server that listens on `port`, while this is entered."""
    log = home / f"{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=home,
            env=clean_environment(home) | (environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text(errors="replace")
            return _listens(port)

        eventually(answers)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def files_in(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
