"""`make pin-images`: it finds references, fetches digests from a registry, and writes them."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.supply_chain.images import CRANE, fetch_digest, find_references, list_files, pin_images
from tests.support.airflow_home import wait_until
from tests.support.ports import accepts_connections, reserve_port
from tests.support.requirements import GO_TOOLS, require

OLD = f"sha256:{'0' * 64}"
NEW = f"sha256:{'1' * 64}"
DOCKERFILE = """\
# syntax=docker/dockerfile:1{digest}
ARG VERSION=3
FROM --platform=$BUILDPLATFORM golang:1.26-alpine{digest} AS build
FROM registry.example:5000/team/app:1.0{digest}
FROM base:${{VERSION}}
FROM scratch
FROM build AS last
COPY --from=build /built /usr/bin/built
COPY --from=0 /built /usr/bin/built
COPY --from=alpine:3.22{digest} /bin/sh /bin/sh
"""
COMPOSE = """\
x-common: &common {{image: ours, build: .}}
services:
  postgres: {{image: postgres:17-alpine{digest}}}
  redis:
    image: "redis:7.2-alpine{digest}" # the queue
  minio:
    image: ${{MINIO_IMAGE:-quay.io/minio/minio:1{digest}}}
  other: {{image: "${{OTHER_IMAGE:?set it}}"}}
  versioned: {{image: "ours:${{VERSION}}"}}
  worker:
    <<: *common
"""
SCRIPT = """\
image=quay.io/minio/minio:1{digest}
docker run "$image"
"""


@pytest.mark.parametrize("digest", ["", f"@{OLD}", f"@{NEW}"])
@pytest.mark.parametrize(
    ("name", "text"), [("a.Dockerfile", DOCKERFILE), ("docker-compose.yaml", COMPOSE), ("minio", SCRIPT)]
)
def test_a_tag_gets_its_current_digest_and_nothing_else_changes(
    name: str, text: str, digest: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text.format(digest=digest))
    resolved: list[str] = []

    def resolve(reference: str) -> str:
        resolved.append(reference)
        return NEW

    assert pin_images(path, resolve) == []
    assert path.read_text() == text.format(digest=f"@{NEW}")
    assert len(resolved) == text.count("{digest}")
    assert all("@" not in reference for reference in resolved)


def test_a_reference_that_cannot_be_pinned_is_reported_and_stays(tmp_path: Path) -> None:
    def resolve(reference: str) -> str:
        if reference == "gone:1":
            raise ValueError(f"{reference}: unknown")
        return NEW

    path = tmp_path / "a.Dockerfile"
    path.write_text(f"FROM gone:1@{OLD}\nFROM alpine\nFROM alpine@{OLD}\nFROM known:1\n")
    assert sorted(pin_images(path, resolve)) == [
        "a.Dockerfile: alpine has no tag; add the version to use",
        "a.Dockerfile: gone:1: unknown",
    ]
    assert path.read_text() == f"FROM gone:1@{OLD}\nFROM alpine\nFROM alpine@{OLD}\nFROM known:1@{NEW}\n"


def test_the_images_of_this_project_are_found() -> None:
    references = [reference for path in list_files() for reference in find_references(path)]
    names = {re.split("[:@]", reference)[0] for reference in references}
    assert {"apache/airflow", "golang", "alpine", "postgres", "redis", "debian"} <= names
    assert not any(name.startswith("fmnist") for name in names)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Address of an image registry on this machine."""
    require(GO_TOOLS)
    address = f"127.0.0.1:{reserve_port()}"
    # Not by `go run`, whose child process would outlive it.
    environment = os.environ | {"GOBIN": str(tmp_path / "bin")}
    subprocess.run(["go", "install", CRANE[-1]], env=environment, check=True, capture_output=True)
    server = subprocess.Popen(
        [tmp_path / "bin" / "crane", "registry", "serve", "--address", address], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: accepts_connections(int(address.rpartition(":")[2])))
        yield address
    finally:
        server.kill()
        server.wait()


def push(reference: str, folder: Path, content: str) -> None:
    (folder / "content").write_text(content)
    with tarfile.open(folder / "layer.tar", "w") as layer:
        layer.add(folder / "content", "content")
    command = [*CRANE, "append", "--new_layer", str(folder / "layer.tar"), "--new_tag", reference]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.exhaustive
def test_the_digest_is_that_of_the_registry_and_follows_a_moved_tag(registry: str, tmp_path: Path) -> None:
    push(f"{registry}/app:1", tmp_path, "first")
    path = tmp_path / "docker-compose.yaml"
    path.write_text(f"services: {{app: {{image: {registry}/app:1}}}}\n")
    assert pin_images(path, fetch_digest) == []
    (first,) = find_references(path)
    assert re.fullmatch(rf"{registry}/app:1@sha256:[0-9a-f]{{64}}", first)
    subprocess.run([*CRANE, "validate", "--remote", first], check=True, capture_output=True)

    push(f"{registry}/app:1", tmp_path, "second")
    assert pin_images(path, fetch_digest) == []
    (second,) = find_references(path)
    assert second != first
    path.write_text(f"services: {{app: {{image: {registry}/app:2}}}}\n")
    (problem,) = pin_images(path, fetch_digest)
    assert "app:2" in problem
    assert "MANIFEST_UNKNOWN" in problem
