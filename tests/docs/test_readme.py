"""README.md: its code and commands run as pasted."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from examples.demo import PARTS
from tests.support.pages import ROOT, blocks, files
from tests.support.servers import free_port
from tests.support.waiting import eventually

APP, _, EVENTS = [b.code for b in blocks("README.md") if b.language == "python" and not b.name]
CODE = files("README.md") | {"app.py": APP + EVENTS}
COMMANDS = "\n".join(block.code for block in blocks("README.md") if block.language == "sh")


@pytest.fixture(scope="module")
def ports() -> dict[str, str]:
    """The ports that stand in for those of the page."""
    return {"9000": str(free_port()), "8000": str(free_port())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for name, code in CODE.items():
        (folder / name).write_text(code.replace("9000", ports["9000"]))
    return folder


@pytest.fixture(scope="module")
def caller(folder: Path, ports: dict[str, str]) -> Iterator[httpx.Client]:
    """Calls the app, which runs like the upstream by the commands of the page."""
    processes = []
    for command in re.findall(r"^uvicorn [^#\n]*", COMMANDS, re.M):
        command += " --port 8000" if "--port" not in command else ""
        for old, new in ports.items():
            command = command.replace(old, new)
        arguments = [sys.executable, "-m", *shlex.split(command)]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
        processes.append(subprocess.Popen(arguments, cwd=folder, env=environment))
    with httpx.Client(base_url=f"http://127.0.0.1:{ports['8000']}", trust_env=False) as client:
        eventually(lambda: answers(client))
        yield client
    for process in processes:
        process.terminate()
        process.wait(30)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/lines?count=1").status_code == 200
    except httpx.TransportError:
        return False


def test_quickstart_app_relays_lines_as_they_come(caller: httpx.Client) -> None:
    command = re.search(r"curl -N http://127.0.0.1:8000(\S+)", COMMANDS)
    assert command is not None
    with caller.stream("GET", command[1]) as response:
        lines = list(response.iter_lines())
    assert lines == [f"line {number}" for number in range(10)]


def test_events_of_the_readme_arrive(caller: httpx.Client) -> None:
    with caller.stream("GET", "/events") as response:
        assert next(response.iter_lines()) == "id: 0"


def test_gateway_of_the_readme_forwards(
    caller: httpx.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from fastapi.testclient import TestClient\nfrom gateway import app\n"
    code += "with TestClient(app) as caller:\n    print(caller.get('/api/item').text)\n"
    run = run_python(folder, "-c", code)
    assert run.stdout == '{"name":"lamp","price":20}\n', run.stderr


def test_test_of_the_readme_passes(folder: Path) -> None:
    run = run_python(folder, "-m", "pytest", "-q", "test_app.py")
    assert "1 passed" in run.stdout, run.stdout


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_app_of_the_readme_without_upstream_is_502(folder: Path) -> None:
    code = "import app\nfrom fastapi.testclient import TestClient\n"
    code += "with TestClient(app.app) as caller:\n"
    code += "    app.app.state.client.base_url = 'http://127.0.0.1:1'\n"
    code += "    print(caller.get('/lines').text)\n"
    shown = re.search(r"a 502 with `(.*?)`", (ROOT / "README.md").read_text())
    assert shown is not None
    assert run_python(folder, "-c", code).stdout == f"{shown[1]}\n"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.slow
def test_demo_shows_each_of_its_parts() -> None:
    for _ in range(3):  # it measures times, which do not hold on a busy machine
        run = subprocess.run(
            [sys.executable, "-X", "utf8", "-m", "examples.demo"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf8",
            timeout=120,
        )
        if run.returncode == 0:
            break
    assert run.returncode == 0, run.stdout
    for title, _ in PARTS:
        assert title in run.stdout
