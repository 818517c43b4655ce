"""nginx with the project's configuration, deploy/proxy/nginx.conf, in front of a server on this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fmnist_tasks.settings import PROJECT
from tests.support.airflow_home import wait_until
from tests.support.certificate import make_certificate
from tests.support.ports import accepts_connections, reserve_port
from tests.support.requirements import NGINX, require

CONFIGURATION = PROJECT / "deploy" / "proxy" / "nginx.conf"


@contextmanager
def run_tls_proxy(folder: Path, server_port: int) -> Iterator[str]:
    """Run the proxy with a self-signed certificate; yields its address."""
    require(NGINX)
    certificate, key = make_certificate(folder)
    port = reserve_port()
    replacements: Mapping[str, str] = {
        "/tmp/": f"{folder}/",  # noqa: S108 - a path in the configuration
        "listen 8443 ": f"listen 127.0.0.1:{port} ",
        "listen 8080;": f"listen 127.0.0.1:{reserve_port()};",
        "//api-server:8080": f"//127.0.0.1:{server_port}",
        "/etc/nginx/certificates/fullchain.pem": str(certificate),
        "/etc/nginx/certificates/privkey.pem": str(key),
    }
    text = CONFIGURATION.read_text()
    for original, replacement in replacements.items():
        assert original in text, original
        text = text.replace(original, replacement)
    (folder / "nginx.conf").write_text(text)
    # Workers that root starts would run as another user, which cannot use the folder.
    options = "daemon off;" if os.geteuid() else "daemon off; user root;"
    command = ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", options]
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or accepts_connections(port), every=0.02)
        assert process.poll() is None, (folder / "nginx.log").read_text()
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
