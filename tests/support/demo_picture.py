"""Makes docs/images/demo.svg, the terminal of `make demo`: python -m tests.support.demo_picture."""

import io
import os
import re
import subprocess
import sys

from rich.console import Console
from rich.text import Text

from tests.support.pages import ROOT

PICTURE = ROOT / "docs/images/demo.svg"
COLUMNS = 94
FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def played() -> str:
    """What the demo prints on a terminal."""
    ours, its = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUTF8": "1", "PYTHONPATH": f"{ROOT}/src"},
        stdin=subprocess.DEVNULL,
        stdout=its,
    ) as demo:
        os.close(its)
        printed = b""
        try:
            while part := os.read(ours, 65536):
                printed += part
        except OSError:  # EIO: nobody has the other end any more
            pass
        os.close(ours)
        if demo.wait(60):
            raise SystemExit(f"not all of the demo held:\n{printed.decode()}")
    return printed.decode().replace("\r\n", "\n")


def drawn(text: str) -> str:
    """The picture, which asks for no font of other hosts."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ make demo\n", "bold"), Text.from_ansi(text)))
    svg = console.export_svg(title="make demo", unique_id="demo")
    svg = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.S)
    svg = re.sub(r"font-family: Fira Code, monospace", f"font-family: {FONT}", svg)
    return re.sub(r"(?m)^ +$\n| +$", "", svg)


if __name__ == "__main__":
    PICTURE.write_text(drawn(played()))
    print(f"{PICTURE.relative_to(ROOT)} is written")
