"""nginx with the project's own configuration, deploy/proxy/nginx.conf, in front of a server of this machine."""

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
    """The address of the proxy, which has a certificate that no authority has signed, until the end."""
    require(NGINX)
    certificate, key = make_certificate(folder)
    port = reserve_port()
    places: Mapping[str, str] = {
        "/tmp/": f"{folder}/",  # noqa: S108 - of the configuration
        "listen 8443 ": f"listen 127.0.0.1:{port} ",
        "listen 8080;": f"listen 127.0.0.1:{reserve_port()};",
        "//api-server:8080": f"//127.0.0.1:{server_port}",
        "/etc/nginx/certificates/fullchain.pem": str(certificate),
        "/etc/nginx/certificates/privkey.pem": str(key),
    }
    text = CONFIGURATION.read_text()
    for shipped, here in places.items():
        assert shipped in text, shipped
        text = text.replace(shipped, here)
    (folder / "nginx.conf").write_text(text)
    options = "daemon off;" if os.geteuid() else "daemon off; user root;"  # or root's workers could not use the folder
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
