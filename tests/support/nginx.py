"""A real nginx, if the machine has one."""

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
skip_without_nginx = pytest.mark.skipif(NGINX is None, reason="there is no nginx on this machine")
needs_nginx = [pytest.mark.nginx, skip_without_nginx]

PROXY = "listen 127.0.0.1:{port}; location /api/ {{ proxy_pass {upstream}/; }}"
"""The server of docs/migrating.md, by which docs/comparison.md is measured too."""

_CONFIG = """
user {user}; daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    {http}
}}
"""


def configure_nginx(folder: Path, http: str) -> list[str]:
    """Write a configuration with `http` in its http block. Return the command to start nginx."""
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(user=getpass.getuser(), folder=folder, http=http))
    return [NGINX or "nginx", "-p", str(folder), "-c", str(config)]


@contextmanager
def running_nginx(folder: Path, http: str) -> Iterator[None]:
    process = subprocess.Popen(configure_nginx(folder, http))
    try:
        yield
    finally:
        process.terminate()
        process.wait()
