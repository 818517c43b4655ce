"""`make pin-images`: write the digest of each base image beside its tag, `name:tag@sha256:…`, or bring it up to date.

A tag can be given to another image at any time; a digest names one for ever. What is built here has no digest in a
registry and stays as it is, and so does a reference that holds a variable. What no registry knows stays too, is named,
and the exit code is 1.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from fmnist_tasks.settings import PROJECT

CRANE = ("go", "run", "github.com/google/go-containerregistry/cmd/crane@v0.22.1")
PATTERNS = (
    "include/cluster/*.Dockerfile",
    "docker-compose*.yaml",
    "compose*.yaml",
    "include/minio",
    ".github/workflows/*.yml",
)

_BEFORE = {
    ".Dockerfile": r"^(?:FROM[ \t]+(?:--\S+[ \t]+)*|COPY[ \t]+--from=|#[ \t]*syntax=)",
    ".yaml": r"""\bimage:[ \t]*["']?(?:\$\{\w+:?-)?""",
    "": r"""^\w*image=["']?""",
}
_BEFORE[".yml"] = _BEFORE[".yaml"]
_NAME = r"(?:[\w.-]+(?::\d+)?/)?[\w.-]+(?:/[\w.-]+)*"  # with the registry's host and port, if it is not Docker's
_REFERENCE = rf"(?P<tagged>{_NAME}(?::(?P<tag>[\w.-]+))?)(?P<digest>@sha256:[0-9a-f]{{64}})?"
_END = r"""(?=[\s"'},]|$)"""


def list_files(root: Path = PROJECT) -> list[Path]:
    """The files in which images are named."""
    return sorted(path for pattern in PATTERNS for path in root.glob(pattern))


def find_references(path: Path) -> list[str]:
    """The images that a file names, with tag, and with digest where it is pinned."""
    return [found["tagged"] + (found["digest"] or "") for found in _find(path)]


def pin(path: Path, resolve: Callable[[str], str]) -> list[str]:
    """Write a digest, which `resolve` gives for `name:tag`, into each reference; what could not be done."""
    text, problems = path.read_text(), []
    for found in reversed(list(_find(path))):
        try:
            if found["tag"]:
                text = (
                    f"{text[: found.start('tagged')]}{found['tagged']}@{resolve(found['tagged'])}{text[found.end() :]}"
                )
            elif not found["digest"]:
                raise ValueError(f"{found['tagged']} has no tag: which version?")
        except ValueError as error:
            problems.append(f"{path.name}: {error}")
    path.write_text(text)
    return problems


def _find(path: Path) -> Iterator[re.Match[str]]:
    text = path.read_text()
    built_here = _list_stages(text) if path.suffix == ".Dockerfile" else _list_built_images(path, text)
    pattern = re.compile(_BEFORE[path.suffix] + _REFERENCE + _END, re.MULTILINE)
    return (found for found in pattern.finditer(text) if found["tagged"] not in built_here)


def _list_stages(text: str) -> set[str]:
    """Names of the stages of a Dockerfile, by which a later one refers to them."""
    stages = re.findall(r"^FROM[ \t].*[ \t]AS[ \t]+(\S+)", text, re.MULTILINE | re.IGNORECASE)
    return {"scratch", *stages, *map(str, range(len(stages)))}


def _list_built_images(path: Path, text: str) -> set[str]:
    """Images of a Compose file that `docker compose build` makes."""
    services = yaml.safe_load(text).get("services", {}).values() if path.suffix == ".yaml" else ()
    return {service["image"] for service in services if "build" in service and "image" in service}


def ask_registry(reference: str) -> str:
    """The digest that a registry has for `name:tag` now: of the index, so that it serves every processor."""
    ended = subprocess.run([*CRANE, "digest", reference], capture_output=True, text=True)
    if ended.returncode:
        said = ended.stderr.strip().splitlines()
        raise ValueError(f"{reference}: {next((line for line in said if line.startswith('Error: ')), ended.stderr)}")
    return ended.stdout.strip()


def main() -> int:
    """Pin all images; the exit code."""
    problems = []
    for path in list_files():
        problems += pin(path, ask_registry)
        print(*(f"{path.relative_to(PROJECT)}: {reference}" for reference in find_references(path)), sep="\n")
    print(*(f"left as it is: {problem}" for problem in problems), sep="\n", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
