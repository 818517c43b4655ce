"""A self-signed certificate for this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.requirements import OPENSSL, require


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Create a certificate and a private key under the names that MinIO expects, and return their paths."""
    require(OPENSSL)
    certificate, key = folder / "public.crt", folder / "private.key"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject, *files],
        check=True,
        capture_output=True,
    )
    return certificate, key
