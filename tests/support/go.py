"""Go's ReverseProxy, built of reverse_proxy.go by a Go that is on the machine."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

GO = shutil.which("go", path=os.environ.get("PATH", "") + ":/usr/local/go/bin")
SOURCE = Path(__file__).parent / "reverse_proxy.go"


@cache
def built(folder: Path) -> Path:
    """The program, in a folder that also takes what the compiler keeps; nothing is downloaded."""
    assert GO is not None
    program = folder / "reverse_proxy"
    folders = {
        "GOCACHE": str(folder / "cache"),
        "GOPATH": str(folder / "path"),
        "HOME": str(folder),
    }
    switches = {"GO111MODULE": "off", "GOPROXY": "off", "GOFLAGS": "", "CGO_ENABLED": "0"}
    subprocess.run(
        [GO, "build", "-o", program, SOURCE],
        env=os.environ | folders | switches,
        check=True,
        timeout=300,
    )
    return program
