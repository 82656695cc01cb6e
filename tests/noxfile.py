"""What the package works with: each Python, the lowest and the newest dependencies, each extra.

`make matrix` runs it all. A Python that is not on the machine is left out.
"""

import os
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
os.chdir(ROOT)  # nox goes to where this file is, now and again before each session
PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
REQUIRED: list[str] = PROJECT["project"]["dependencies"]
DEPENDENCIES = ["lowest", "newest"]
CELLS = ["none", *EXTRAS, "all"]

# What is tested in a cell, and the tools for it beside the group "unit". Real servers, examples,
# pages of the docs and what takes long are for `make test-all`.
LEFT_OUT = [
    "tests/docs/test_comparison.py",
    "tests/docs/test_pages.py",
    "tests/docs/test_examples.py",
    "tests/docs/test_forwarding_examples.py",
    "tests/docs/test_common_errors.py",
    "tests/docs/test_limits_examples.py",
    "tests/docs/test_migrating.py",
    "tests/integration/test_packaging.py",
    "tests/docs/test_page_code.py",
    "tests/docs/test_readme.py",
    "tests/docs/test_websocket_example.py",
    "tests/docs/test_why.py",
    "tests/fuzz/test_fuzz.py",
]
WITH_WS = [str(path) for path in Path("tests/unit/_websockets").glob("test_*.py")]
WITH_ALL = [
    "tests/unit/test_libraries.py",
    "tests/unit/instrumentation/test_dashboard.py",
    "tests/unit/instrumentation/test_end_to_end.py",
    "tests/docs/test_runbook.py",
    *map(str, Path("tests/unit/records").glob("test_*.py")),
    "tests/unit/transport/test_seen_by_others.py",
]
# With old releases: FastAPI warns, Starlette's own router does not say which route it took, its
# test client knows nothing of httpx2, and it leaves streams to the garbage collector.
NOT_OF_OLD = [
    "tests/unit/test_libraries.py",  # whose OpenTelemetry is one that knows httpx2
    "tests/unit/testing/test_plugin.py::test_the_code_of_the_docs_runs_as_it_stands",
    "tests/unit/testing/test_plugin.py::test_clean_tests_pass_with_warnings_as_errors",
    "tests/unit/testing/test_plugin.py::test_test_clients_on_httpx_and_on_httpx2_are_seen[httpx2]",
    "tests/unit/instrumentation/test_end_to_end.py::test_the_code_of_the_docs_runs_as_it_stands",
    "tests/unit/records/test_routes.py::test_the_route_is_the_template_and_not_the_path",
]
OF_EXTRAS = ("instrumentation", "testing")  # need the extra that has their name
CORE = [
    str(path) for path in Path("tests/unit").rglob("test_*.py") if path.parts[2] not in OF_EXTRAS
]
CORE.append("tests/unit/instrumentation/test_logs.py")
ELSEWHERE = {*LEFT_OUT, *WITH_WS, *WITH_ALL}
TESTS: dict[str, list[str]] = {
    "none": sorted({*CORE} - ELSEWHERE),
    "otel": ["tests/unit/instrumentation/test_opentelemetry.py"],
    "prometheus": ["tests/unit/instrumentation/test_prometheus.py"],
    "testing": ["tests/unit/testing"],
    "ws": WITH_WS,
    "all": WITH_ALL,
}
FAST_TOOLS = ["httpx-ws", "respx", "trustme", "uvloop"]
OTEL_TOOLS = ["opentelemetry-instrumentation-asgi", "opentelemetry-instrumentation-httpx"]
OTEL_TOOLS += ["opentelemetry-sdk"]
TOOLS: dict[str, list[str]] = {
    "none": FAST_TOOLS,
    "otel": OTEL_TOOLS,
    "testing": ["httptools", *FAST_TOOLS],
    "all": [*FAST_TOOLS, *OTEL_TOOLS, "promql-parser"],
}

nox.options.default_venv_backend = "uv"
nox.options.envdir = str(ROOT / ".nox")
nox.options.error_on_missing_interpreters = False
# The Pythons of pyenv, whichever of them is the chosen one; none is downloaded.
PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
os.environ["PATH"] = os.pathsep.join(
    [*map(str, PYENV.glob("versions/3.*/bin")), os.environ["PATH"]]
)
os.environ["UV_PYTHON_DOWNLOADS"] = "never"


@nox.session(python=PYTHONS)
@nox.parametrize("extras", CELLS)
@nox.parametrize("dependencies", DEPENDENCIES)
def tests(session: nox.Session, dependencies: str, extras: str) -> None:
    """One cell: one Python, one set of versions, one set of extras."""
    session.chdir(ROOT)
    names = {"none": [], "all": [*EXTRAS]}.get(extras, [extras])
    constraints = Path(session.virtualenv.location) / "constraints.txt"
    lowest = _lowest(str(session.python), names) if dependencies == "lowest" else []
    constraints.write_text("\n".join(lowest))
    unit = nox.project.dependency_groups(PROJECT, "unit")
    session.install("--constraint", str(constraints), f".[{','.join(names)}]", *unit)
    if tools := TOOLS.get(extras):
        session.install("--constraint", str(constraints), *tools)
    command = ["python", "-m", "pytest", "-q", "-n", "2", "-m", "not slow and not serial"]
    command += ["-p", "no:cacheprovider"]
    if dependencies == "lowest":  # old releases warn of what is theirs
        command += ["-W", "default", *(f"--deselect={name}" for name in NOT_OF_OLD)]
        command += [path for path in TESTS[extras] if path not in NOT_OF_OLD]
    else:
        command += TESTS[extras]
    session.run(*command, env={"PYTHONDONTWRITEBYTECODE": ""})


def _lowest(python: str, extras: list[str]) -> list[str]:
    """What is declared, at its lowest."""
    lowest: dict[str, Version] = {}
    for text in [*REQUIRED, *(requirement for name in extras for requirement in EXTRAS[name])]:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            version = Version(next(iter(requirement.specifier)).version)
            lowest[requirement.name] = max(version, lowest.get(requirement.name, version))
    # Newer versions of the test tool need a newer anyio.
    return [*(f"{name}=={version}" for name, version in lowest.items()), "httpx-ws<0.9"]
