"""What is optional is only asked for by its own module, with the extra that brings it."""

import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("module", "needs", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus"),
        ("opentelemetry", "opentelemetry", "otel"),
    ],
)
def test_without_its_package_a_module_names_the_extra(module: str, needs: str, extra: str) -> None:
    code = f"import sys; sys.modules[{needs!r}] = None; import asgi_upstream.instrumentation."
    message = run(code + module).stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: ")
    assert f"pip install 'asgi-upstream[{extra}]'" in message


def test_the_library_and_its_logs_need_neither() -> None:
    code = "import sys; sys.modules.update(prometheus_client=None, opentelemetry=None);"
    done = run(f"{code} import asgi_upstream, asgi_upstream.instrumentation.logs")
    assert (done.returncode, done.stderr) == (0, "")
