"""pip, installing from an index behind the relay."""

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest

from tests.real_clients.programs import run
from tests.real_clients.upstreams import Passed, Upstreams, both_transports
from tests.support.servers import Server

pytestmark = both_transports


def wheel(folder: Path, name: str, *needs: str, version: str = "1.0") -> Path:
    """The smallest that there is: one module, which says its name."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {other}\n" for other in needs)
    files = {
        f"{name}.py": f"NAME = {name!r}\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    built = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(built, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return built


@pytest.fixture(scope="module")
def index(upstreams: Upstreams) -> str:
    """The path of an index of two packages, by PEP 503: the first needs the second."""
    folder = upstreams.folder / "simple"
    for name, needs in (("upstream_one", ["upstream-two>=1"]), ("upstream_two", [])):
        page = folder / name.replace("_", "-")
        page.mkdir(parents=True, exist_ok=True)
        built = wheel(page, name, *needs)
        digest = hashlib.sha256(built.read_bytes()).hexdigest()
        link = f'<!doctype html><a href="{built.name}#sha256={digest}">{built.name}</a>'
        (page / "index.html").write_text(link)
    return "/files/simple/"


def pip(home: Path, *arguments: str | Path) -> bytes:
    quiet = ("--isolated", "--disable-pip-version-check", "--no-cache-dir", "--no-color")
    return run(sys.executable, "-m", "pip", *arguments, *quiet, home=home).stdout


@pytest.mark.parametrize("feature", [(), ("--use-feature=fast-deps",)], ids=["whole", "ranges"])
def test_pip_installs_a_package_and_what_it_needs(
    tmp_path: Path, url: str, relay: Server, index: str, feature: tuple[str, ...]
) -> None:
    passed = Passed(relay, "web")
    target = tmp_path / "site"
    where = ("--index-url", f"{url}/web{index}", "--target", target)
    pip(tmp_path, "install", *where, *feature, "upstream-one==1.0")
    assert (target / "upstream_one.py").read_text() == "NAME = 'upstream_one'\n"
    assert (target / "upstream_two.py").exists()
    assert (passed.look()["GET 206"] > 0) == bool(feature)


def test_pip_says_which_versions_there_are(tmp_path: Path, url: str, index: str) -> None:
    where = ("--index-url", f"{url}/web{index}")
    said = pip(tmp_path, "install", "--dry-run", "--report", "-", "-q", *where, "upstream-two")
    installs = json.loads(said)["install"]
    assert [item["metadata"]["version"] for item in installs] == ["1.0"]
    assert installs[0]["download_info"]["url"].startswith(f"{url}/web/")
