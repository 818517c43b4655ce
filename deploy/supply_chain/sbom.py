"""`make sbom`: bills of materials in CycloneDX JSON, in `var/sbom`: of the lock file, and of each store built here.

They are created on demand and not committed, so that they are never out of date.
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
    """Write names, versions and hashes of all locked packages. The same lock file gives the same bytes."""
    program = Path(sys.executable).with_name("cyclonedx-py")
    project = ("--pyproject", str(PROJECT / "pyproject.toml"))
    output = ("--output-reproducible", "--output-format", "JSON", "--output-file", str(target))
    # cyclonedx-py warns that the lock file does not contain the dependencies between packages.
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    subprocess.run([program, "requirements", str(lock), *project, *output], env=environment, check=True)


def describe_go_program(target: Path, program: Path) -> None:
    """Write the modules of a Go program, as listed in the binary (`go version -m`)."""
    output = ("-json", "-noserial", "-notimestamp", "-output", str(target))
    subprocess.run([*CYCLONEDX_GOMOD, "bin", *output, str(program)], check=True)


def list_go_programs(cache: Path) -> list[Path]:
    """The MinIO servers and Versity S3 Gateways that were built on this machine."""
    return sorted([*cache.glob("minio-*/minio"), *cache.glob("versity-*/versitygw")])


def main() -> None:
    """Write all bills of materials, and print their paths."""
    settings = Settings.from_environment()
    folder = settings.home / "sbom"
    folder.mkdir(parents=True, exist_ok=True)
    describe_lock(folder / "requirements.cdx.json")
    for program in list_go_programs(settings.cache):
        describe_go_program(folder / f"{program.parent.name}.cdx.json", program)
    print(*sorted(folder.glob("*.cdx.json")), sep="\n")


if __name__ == "__main__":
    main()
