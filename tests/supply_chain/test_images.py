"""`make pin-images`: which references it finds, what it writes, and that it asks a registry."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.supply_chain.images import CRANE, ask_registry, find_references, list_files, pin
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
def test_a_tag_gets_the_digest_of_now_and_nothing_else_changes(
    name: str, text: str, digest: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text.format(digest=digest))
    asked: list[str] = []

    def resolve(reference: str) -> str:
        asked.append(reference)
        return NEW

    assert pin(path, resolve) == []
    assert path.read_text() == text.format(digest=f"@{NEW}")
    assert len(asked) == text.count("{digest}")
    assert all("@" not in reference for reference in asked)


def test_what_cannot_be_pinned_is_named_and_stays(tmp_path: Path) -> None:
    def resolve(reference: str) -> str:
        if reference == "gone:1":
            raise ValueError(f"{reference}: unknown")
        return NEW

    path = tmp_path / "a.Dockerfile"
    path.write_text(f"FROM gone:1@{OLD}\nFROM alpine\nFROM alpine@{OLD}\nFROM kept:1\n")
    assert sorted(pin(path, resolve)) == [
        "a.Dockerfile: alpine has no tag: which version?",
        "a.Dockerfile: gone:1: unknown",
    ]
    assert path.read_text() == f"FROM gone:1@{OLD}\nFROM alpine\nFROM alpine@{OLD}\nFROM kept:1@{NEW}\n"


def test_the_images_of_this_project_are_found() -> None:
    found = {path.name: find_references(path) for path in list_files()}
    names = {re.split("[:@]", reference)[0] for references in found.values() for reference in references}
    assert {"apache/airflow", "golang", "alpine", "postgres", "redis", "debian"} <= names
    assert not any(name.startswith("fmnist") for name in names)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Address of a registry that has the image `app:1`."""
    require(GO_TOOLS)
    address = f"127.0.0.1:{reserve_port()}"
    # `go run` starts the program as a child, which would outlive it; this is the program itself
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
def test_a_registry_gives_the_digest_and_a_new_one_when_the_tag_moves(registry: str, tmp_path: Path) -> None:
    push(f"{registry}/app:1", tmp_path, "first")
    path = tmp_path / "docker-compose.yaml"
    path.write_text(f"services: {{app: {{image: {registry}/app:1}}}}\n")
    assert pin(path, ask_registry) == []
    (first,) = find_references(path)
    assert re.fullmatch(rf"{registry}/app:1@sha256:[0-9a-f]{{64}}", first)
    subprocess.run([*CRANE, "validate", "--remote", first], check=True, capture_output=True)

    push(f"{registry}/app:1", tmp_path, "second")
    assert pin(path, ask_registry) == []
    (second,) = find_references(path)
    assert second != first
    path.write_text(f"services: {{app: {{image: {registry}/app:2}}}}\n")
    (problem,) = pin(path, ask_registry)
    assert "app:2" in problem
    assert "MANIFEST_UNKNOWN" in problem
