"""The scheduled jobs of CI, and the files that Dependabot updates."""

from __future__ import annotations

from typing import Any

import yaml

from fmnist_tasks.settings import PROJECT

MANIFESTS = {
    "pip": ["requirements.txt"],
    "github-actions": [".github/workflows/*.yml"],
    "docker": ["*Dockerfile", "*.dockerfile"],
    "docker-compose": ["docker-compose*.yaml", "compose*.yaml"],
    "gomod": ["go.mod"],
    "npm": ["package.json"],
}


def read_yaml(path: str) -> Any:
    return yaml.safe_load((PROJECT / path).read_text())


def test_ci_checks_dependencies_every_night() -> None:
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    nightly = {name: job for name, job in jobs.items() if "schedule" in str(job.get("if"))}
    commands = [step.get("run") for step in nightly["dependencies"]["steps"]]
    assert commands.index("include/minio find_server") < commands.index("make audit-deps")
    assert "make sbom" in commands
    build = next(step["run"] for step in nightly["images"]["steps"] if "docker buildx build" in step.get("run", ""))
    assert "--sbom=true" in build
    images = {f"{name}.Dockerfile" for name in nightly["images"]["strategy"]["matrix"]["image"]}
    assert images == {path.name for path in (PROJECT / "include" / "cluster").glob("*.Dockerfile")}
    assert set(jobs["required"]["needs"]) == set(jobs) - set(nightly) - {"required"}


def test_dependabot_covers_every_file_that_names_versions() -> None:
    updates = read_yaml(".github/dependabot.yml")["updates"]
    configured = {(update["package-ecosystem"], update["directory"].strip("/")) for update in updates}
    expected = {
        (ecosystem, "" if ecosystem == "github-actions" else str(path.parent.relative_to(PROJECT)).removeprefix("."))
        for ecosystem, patterns in MANIFESTS.items()
        for pattern in patterns
        for folder in (PROJECT, PROJECT / "deploy", PROJECT / "include", PROJECT / "tests")
        for path in (folder.glob(pattern) if folder == PROJECT else folder.rglob(pattern))
    }
    assert configured == expected
