"""`make sbom`: bills of materials in CycloneDX JSON, below `var/sbom`: of the lock, and of each store that was built.

They are made when they are needed and not kept in the repository, so that they cannot be older than what they describe.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fmnist_tasks.settings import PROJECT, Settings

LOCK = PROJECT / "requirements.txt"
CYCLONEDX_GOMOD = ("go", "run", "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0")


def describe_lock(target: Path, lock: Path = LOCK) -> None:
    """Write names, versions and hashes of all locked packages; the same lock gives the same bytes."""
    program = Path(sys.executable).with_name("cyclonedx-py")
    project = ("--pyproject", str(PROJECT / "pyproject.toml"))
    output = ("--output-reproducible", "--output-format", "JSON", "--output-file", str(target))
    silent = os.environ | {"PYTHONWARNINGS": "ignore"}  # about what a lock cannot tell: which package needs which
    subprocess.run([program, "requirements", str(lock), *project, *output], env=silent, check=True)


def describe_go_program(target: Path, program: Path) -> None:
    """Write the modules that a Go program was built from, which it names itself (`go version -m`)."""
    output = ("-json", "-noserial", "-notimestamp", "-output", str(target))
    subprocess.run([*CYCLONEDX_GOMOD, "bin", *output, str(program)], check=True)


def list_go_programs(cache: Path) -> list[Path]:
    """Each MinIO and Versity S3 Gateway that was built on this machine."""
    return sorted([*cache.glob("minio-*/minio"), *cache.glob("versity-*/versitygw")])


def main() -> None:
    """Write and name all of them."""
    settings = Settings.from_environment()
    folder = settings.home / "sbom"
    folder.mkdir(parents=True, exist_ok=True)
    describe_lock(folder / "requirements.cdx.json")
    for program in list_go_programs(settings.cache):
        describe_go_program(folder / f"{program.parent.name}.cdx.json", program)
    print(*sorted(folder.glob("*.cdx.json")), sep="\n")


if __name__ == "__main__":
    main()
