"""MLflow: artifacts of its own client and of its page, and requests that its page posts."""

import os
import subprocess

import pytest
from playwright.sync_api import Page

from tests.real_clients.apps.site import (
    Recipe,
    Site,
    Visitor,
    bin_folder,
    download,
    run,
    skip_without,
)
from tests.real_clients.programs import clean_environment

pytestmark = skip_without("mlflow")
DATA = bytes(range(256)) * 40_000

RECIPE = Recipe(
    "mlflow",
    "/ml",
    lambda port: [
        *("mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"),
        *("--backend-store-uri=sqlite:///db", "--artifacts-destination=./artifacts"),
        "--cors-allowed-origins=http://apps.example:*",
    ],
    ready="/health",
    environment={"MLFLOW_DISABLE_TELEMETRY": "true"},
    own_errors=("/mlflow/users/current",),
)

# Log a run with a large artifact, get it back, and print the addresses of the page of the run.
CLIENT = """
import mlflow, sys
mlflow.set_experiment(sys.argv[1])
with mlflow.start_run(run_name="first") as run:
    mlflow.log_metric("loss", 0.5)
    mlflow.log_artifact("large.bin")
path = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="large.bin",
                                           dst_path="back")
assert open(path, "rb").read() == open("large.bin", "rb").read()
print(run.info.experiment_id, run.info.run_id)
"""
# The page's own requests carry its Origin.
POST = """
    const answer = await fetch("/ml/ajax-api/2.0/mlflow/experiments/create", {
        method: "POST",
        headers: {"content-type": "application/json"},
        body: JSON.stringify({name: args[0]}),
    });
    return answer.status;
"""


def log_run(site: Site, name: str) -> tuple[str, str]:
    """Log a run through the proxy, with MLflow's client. Return its experiment's and its id."""
    home = site.application.home
    (home / "large.bin").write_bytes(DATA)
    done = subprocess.run(
        [bin_folder("mlflow") / "python", "-c", CLIENT, name],
        cwd=home,
        env=clean_environment(home)
        | {"MLFLOW_TRACKING_URI": site.url.replace("apps.example", "127.0.0.1"), "NO_PROXY": "*"}
        | {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    experiment, run_id = done.stdout.splitlines()[-1].split()
    return experiment, run_id


@pytest.fixture(scope="module")
def logged(site: Site) -> tuple[str, str]:
    return log_run(site, "logged")


def open_run(visitor: Visitor, logged: tuple[str, str], tab: str = "") -> Page:
    page = visitor.open("/#/experiments/{}/runs/{}".format(*logged) + tab)
    page.get_by_text("first").first.wait_for()
    return page


def test_artifact_of_the_client_is_shown_and_downloaded(
    visitor: Visitor, logged: tuple[str, str]
) -> None:
    page = open_run(visitor, logged, "/artifacts")
    page.get_by_text("large.bin").first.wait_for()
    path = f"/ml/get-artifact?path=large.bin&run_uuid={logged[1]}"
    assert download(page, path) == DATA
    page.reload()
    page.get_by_text("large.bin").first.wait_for()


def test_page_may_post(visitor: Visitor, logged: tuple[str, str]) -> None:
    page = open_run(visitor, logged)
    assert run(page, POST, f"posted-{os.urandom(4).hex()}") == 200


def test_three_tabs_show_the_run(visitor: Visitor, logged: tuple[str, str]) -> None:
    for _ in range(3):
        open_run(visitor, logged)


def test_closed_tab_ends_a_download(visitor: Visitor, site: Site, logged: tuple[str, str]) -> None:
    page = open_run(visitor, logged)
    run(
        page,
        """
        const answer = await fetch(args[0]);
        window.reader = answer.body.getReader();
        await window.reader.read();
        """,
        f"/ml/get-artifact?path=large.bin&run_uuid={logged[1]}",
    )
    page.close()
    site.wait_until_idle()


def test_runs_outlive_a_restart(visitor: Visitor, site: Site, logged: tuple[str, str]) -> None:
    page = open_run(visitor, logged)
    visitor.expected = ("502 ",)  # while it is away
    site.application.restart()
    page.reload()
    page.get_by_text("first").first.wait_for()
    log_run(site, "later")
