"""An image of containers on the disk, by the OCI's layout, and its copy by skopeo.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

from tests.real_clients.programs import program, run
from tests.support.servers import Server

MB = 1 << 20
OCI = "application/vnd.oci.image"
WHO = "ann:secret"
PIECE = random.Random(11).randbytes(4 * MB)


class Layout:
    """The blobs of one image, each in a file that is named for its digest."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._blobs = folder, folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)

    def add(self, kind: str, made: Path) -> dict[str, Any]:
        """The descriptor of a blob, whose file is moved to where it belongs."""
        with made.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        made = made.rename(self._blobs / digest)
        size = made.stat().st_size
        return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{digest}", "size": size}

    def add_json(self, kind: str, value: object) -> dict[str, Any]:
        made = self.folder / "made"
        made.write_text(json.dumps(value))
        return self.add(kind, made)

    def add_layer(self, number: int, size: int) -> dict[str, Any]:
        """A layer of so many bytes and a little more: files that differ in their first bytes."""
        made = self.folder / "made"
        with tarfile.open(made, "w") as tar:
            for at in range(0, size, len(PIECE)):
                data = b"%10d" % (number + at) + PIECE[10 : size - at]
                info = tarfile.TarInfo(f"{number}/{at}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return self.add("layer.v1.tar", made)


def image(folder: Path, *sizes: int) -> str:
    """Write an image with layers of these sizes, tagged `made`; the digest of its manifest."""
    layout = Layout(folder)
    layers = [layout.add_layer(number, size) for number, size in enumerate(sizes)]
    rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = layout.add_json(
        "manifest.v1+json",
        {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": layout.add_json("config.v1+json", config),
            "layers": layers,
        },
    )
    tagged = manifest | {"annotations": {"org.opencontainers.image.ref.name": "made"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    digest: str = manifest["digest"]
    return digest


def blobs(folder: Path) -> set[str]:
    """The digests of the blobs in a layout, each of which is that of its content."""
    found = set()
    for path in (folder / "blobs" / "sha256").iterdir():
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == path.name
        found.add(path.name)
    return found


class Skopeo:
    """skopeo, which is told of a registry at the relay's address."""

    def __init__(self, home: Path, relay: Server) -> None:
        self._program = program("skopeo")
        self.home, self._host = home, f"127.0.0.1:{relay.port}"

    def __call__(self, *arguments: str | Path, who: str = WHO, **options: Any) -> str:
        command, *rest = arguments
        copies = command == "copy"
        settings = ["--preserve-digests"] if copies else []
        for side in ("--src-", "--dest-") if copies else ("--",):
            settings += [f"{side}tls-verify=false", f"{side}creds={who}"]
        always = ("--insecure-policy", "--tmpdir", self.home)
        done = run(self._program, *always, command, *settings, *rest, home=self.home, **options)
        return (done.stdout + done.stderr).decode()

    def name(self, name: str) -> str:
        return f"docker://{self._host}/{name}"
