"""What is optional is only asked for by its own module, which says how to install it."""

import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@pytest.mark.process
@pytest.mark.parametrize(
    ("module", "needs", "package"),
    [
        ("prometheus", "prometheus_client", "prometheus-client"),
        ("opentelemetry", "opentelemetry", "opentelemetry-api"),
    ],
)
def test_without_its_package_a_module_names_it(module: str, needs: str, package: str) -> None:
    code = f"import sys; sys.modules[{needs!r}] = None; import asgi_upstream.instrumentation."
    message = run(code + module).stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: ")
    assert message.endswith(f": pip install {package}")


@pytest.mark.process
def test_the_library_and_its_logs_need_neither() -> None:
    code = "import sys; sys.modules.update(prometheus_client=None, opentelemetry=None);"
    done = run(f"{code} import asgi_upstream, asgi_upstream.instrumentation.logs")
    assert (done.returncode, done.stderr) == (0, "")
