"""What is published: the wheel and the sdist, and an environment that has nothing but them."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import asgi_upstream
from tests.support.flavor import httpx
from tests.support.servers import free_port
from tests.support.upstream import Upstream
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
PACKAGE = Path(asgi_upstream.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
WHEEL = f"asgi_upstream-{VERSION}-py3-none-any.whl"
SDIST = f"asgi_upstream-{VERSION}.tar.gz"

# As it was before the tests changed the list of trusted authorities. pip needs the machine's.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

pytestmark = pytest.mark.slow


def ran(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints, which must succeed; the package is not on its path."""
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(tree: Path, to: Path) -> Path:
    ran(
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-d",
        to,
        cwd=tree,
        SOURCE_DATE_EPOCH="1700000000",
    )
    return to


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that the sdist holds."""
    to = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(dist / SDIST) as sdist:
        sdist.extractall(to, filter="data")
    return to / SDIST.removesuffix(".tar.gz")


def environment(at: Path, *requirements: str) -> Path:
    """The Python of a new environment that has just these, and what they require."""
    ran(sys.executable, "-m", "venv", "--without-pip", at)
    python = at / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    ran(*pip, "install", "-q", "-c", "constraints.txt", *requirements)
    return python


@pytest.fixture(scope="module")
def python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the wheel, what it requires, and a server."""
    return environment(tmp_path_factory.mktemp("environment"), f"{dist / WHEEL}", "uvicorn")


def digests(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def test_second_build_has_the_same_bytes(dist: Path, unpacked: Path, tmp_path: Path) -> None:
    """Also a build from the sdist."""
    assert set(digests(dist)) == {WHEEL, SDIST}
    assert digests(build(ROOT, tmp_path / "again")) == digests(dist)
    assert digests(build(unpacked, tmp_path / "from-the-sdist")) == digests(dist)


def test_twine_finds_no_fault(dist: Path) -> None:
    said = ran(sys.executable, "-m", "twine", "check", "--strict", dist / WHEEL, dist / SDIST)
    assert said.count("PASSED") == 2


def test_wheel_holds_package_types_licence_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(dist / WHEEL) as wheel:
        names = set(wheel.namelist())
    info = f"asgi_upstream-{VERSION}.dist-info"
    package = {
        f"asgi_upstream/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    about = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    assert "asgi_upstream/py.typed" in package
    plugin = "pytest_asgi_upstream.py"
    assert names == {*package, plugin, *(f"{info}/{name}" for name in about)}


def test_sdist_holds_the_tests_and_the_docs(unpacked: Path) -> None:
    for name in (
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "README.md",
        "constraints.txt",
        "docs/tutorial.md",
        "examples/streamed.py",
        "pyproject.toml",
        "src/asgi_upstream/py.typed",
        "tests/integration/test_packaging.py",
    ):
        assert (unpacked / name).is_file(), name
    assert not list(unpacked.rglob("*.pyc"))


def test_wheel_installs_no_extra_and_prints_its_version(python: Path, tmp_path: Path) -> None:
    said = dict(
        line.split(maxsplit=1)
        for line in ran(python, "-m", "asgi_upstream", cwd=tmp_path).splitlines()
        if line
    )
    assert said["asgi-upstream"] == VERSION
    for optional in ("httptools", "prometheus-client", "opentelemetry-api", "fastapi"):
        assert said[optional] == "not installed"


def test_an_example_runs_in_an_environment_with_nothing_else(python: Path, unpacked: Path) -> None:
    port = free_port()
    with Upstream() as upstream:
        server = subprocess.Popen(
            [python, "-m", "uvicorn", "--port", str(port), "examples.plain_starlette:app"],
            cwd=unpacked,
            env={"UPSTREAM_URL": upstream.url, "PATH": os.environ["PATH"]},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as caller:

                def answers() -> bool:
                    assert server.poll() is None, "the server has stopped"
                    try:
                        return caller.get("/item").content == b"x" * 1024
                    except httpx.ConnectError:
                        return False

                eventually(answers)
        finally:
            server.terminate()
            server.wait(30)


def test_all_that_is_public_has_a_known_type(dist: Path, tmp_path: Path) -> None:
    extras = ",".join(PROJECT["optional-dependencies"])
    python = environment(tmp_path / "environment", f"{dist / WHEEL}[{extras}]", "httpx2")
    # It takes the first Python on the path, and for --verifytypes no other.
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    command = (sys.executable, "-m", "pyright", "--ignoreexternal", "--verifytypes")
    said = ran(*command, "asgi_upstream", cwd=tmp_path, PATH=path)
    assert f'Package directory: "{tmp_path}' in said, said
    assert "Type completeness score: 100%" in said, said
