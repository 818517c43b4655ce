"""`make sbom`: the bills of materials agree with the lock file and with the built MinIO, and are valid CycloneDX."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

from deploy.supply_chain.sbom import LOCK, describe_go_program, describe_lock
from fmnist_tasks.settings import PROJECT
from tests.support.lock import Package, read_lock
from tests.support.requirements import GO_TOOLS, MINIO, require


def read_components(path: Path) -> list[dict[str, Any]]:
    """The components of a bill of materials, which must be valid according to its schema."""
    text = path.read_text()
    version = SchemaVersion.from_version(json.loads(text)["specVersion"])
    assert JsonStrictValidator(version).validate_str(text) is None
    components: list[dict[str, Any]] = json.loads(text)["components"]
    return components


def to_package(component: dict[str, Any]) -> Package:
    files = [reference for reference in component["externalReferences"] if reference["type"] == "distribution"]
    digests = [digest for file in files for digest in file["hashes"]]
    assert {digest["alg"] for digest in digests} == {"SHA-256"}
    name, version = canonicalize_name(component["name"]), component["version"]
    return Package(name, version, frozenset(digest["content"] for digest in digests))


def write_lock_extract(path: Path, count: int | None) -> Path:
    """Write a lock file with `count` locked packages, or all if None. One has two versions, for different Pythons."""
    packages = re.findall(r"^\w.*(?:\n .*)*", LOCK.read_text(), re.MULTILINE)
    two_versions = [text for text in packages if text.startswith("soupsieve==")]
    assert len(two_versions) > 1
    path.write_text("\n".join(dict.fromkeys([*two_versions, *packages][:count])))
    return path


@pytest.mark.parametrize("count", [12, pytest.param(None, marks=pytest.mark.exhaustive)])
def test_the_sbom_has_the_names_versions_and_hashes_of_the_lock(count: int | None, tmp_path: Path) -> None:
    lock = write_lock_extract(tmp_path / "requirements.txt", count)
    sbom = tmp_path / "lock.cdx.json"
    describe_lock(sbom, lock)
    assert sorted(map(to_package, read_components(sbom))) == sorted(read_lock(lock))


@pytest.mark.exhaustive
def test_the_same_lock_gives_the_same_bytes(tmp_path: Path) -> None:
    lock = write_lock_extract(tmp_path / "requirements.txt", 12)
    for name in ("first", "second"):
        describe_lock(tmp_path / name, lock)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def read_modules(program: Path) -> list[tuple[str, str, str]]:
    """Name, version and SHA-256 of the modules of a Go program, from its own build information."""
    output = subprocess.run(["go", "version", "-m", program], capture_output=True, text=True, check=True).stdout
    modules: list[tuple[str, str, str]] = []
    for kind, *values in filter(None, map(str.split, output.splitlines())):
        if kind not in {"dep", "=>"} or len(values) < 3:  # the main module, which is a folder and has no digest
            continue
        if kind == "=>":  # replaces the module before it
            modules.pop()
        name, version, digest = values
        modules.append((name, version, base64.b64decode(digest.removeprefix("h1:")).hex()))
    return modules


@pytest.mark.exhaustive
def test_the_sbom_of_minio_has_the_modules_of_its_binary(tmp_path: Path) -> None:
    require(MINIO, GO_TOOLS)
    program = Path(os.environ.get("MINIO") or next((PROJECT / "var" / "cache").glob("minio-*/minio")))
    sbom = tmp_path / "minio.cdx.json"
    describe_go_program(sbom, program)
    modules = [
        (component["name"], component["version"], component["hashes"][0]["content"])
        for component in read_components(sbom)
    ]
    assert sorted(modules) == sorted(read_modules(program))
    assert len(modules) > 100
