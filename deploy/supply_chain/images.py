"""`make pin-images`: write or update the digest of each base image after its tag: `name:tag@sha256:…`.

A tag can move to another image; a digest always names the same one. Images built here have no digest in a registry and
do not change, and neither do references that contain a variable. If a registry does not have an image, the command
reports it and exits with 1.
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
_NAME = r"(?:[\w.-]+(?::\d+)?/)?[\w.-]+(?:/[\w.-]+)*"  # host and port only for a registry other than Docker Hub
_REFERENCE = rf"(?P<tagged>{_NAME}(?::(?P<tag>[\w.-]+))?)(?P<digest>@sha256:[0-9a-f]{{64}})?"
_END = r"""(?=[\s"'},]|$)"""


def list_files(root: Path = PROJECT) -> list[Path]:
    """The files that name images."""
    return sorted(path for pattern in PATTERNS for path in root.glob(pattern))


def find_references(path: Path) -> list[str]:
    """The images that a file names, with tag, and with digest if pinned."""
    return [match["tagged"] + (match["digest"] or "") for match in _find(path)]


def pin_images(path: Path, resolve: Callable[[str], str]) -> list[str]:
    """Write the digest that `resolve` returns for `name:tag` into each reference; return the problems."""
    text, problems = path.read_text(), []
    for match in reversed(list(_find(path))):
        try:
            if match["tag"]:
                text = (
                    f"{text[: match.start('tagged')]}{match['tagged']}@{resolve(match['tagged'])}{text[match.end() :]}"
                )
            elif not match["digest"]:
                raise ValueError(f"{match['tagged']} has no tag; add the version to use")
        except ValueError as error:
            problems.append(f"{path.name}: {error}")
    path.write_text(text)
    return problems


def _find(path: Path) -> Iterator[re.Match[str]]:
    text = path.read_text()
    local_names = _list_stages(text) if path.suffix == ".Dockerfile" else _list_built_images(path, text)
    pattern = re.compile(_BEFORE[path.suffix] + _REFERENCE + _END, re.MULTILINE)
    return (match for match in pattern.finditer(text) if match["tagged"] not in local_names)


def _list_stages(text: str) -> set[str]:
    """Names and numbers of the stages of a Dockerfile, by which later stages refer to them."""
    stages = re.findall(r"^FROM[ \t].*[ \t]AS[ \t]+(\S+)", text, re.MULTILINE | re.IGNORECASE)
    return {"scratch", *stages, *map(str, range(len(stages)))}


def _list_built_images(path: Path, text: str) -> set[str]:
    """Images of a Compose file that `docker compose build` creates."""
    services = yaml.safe_load(text).get("services", {}).values() if path.suffix == ".yaml" else ()
    return {service["image"] for service in services if "build" in service and "image" in service}


def fetch_digest(reference: str) -> str:
    """The current digest of `name:tag` in its registry: that of the image index, which covers all processors."""
    result = subprocess.run([*CRANE, "digest", reference], capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise ValueError(f"{reference}: {next((line for line in lines if line.startswith('Error: ')), result.stderr)}")
    return result.stdout.strip()


def main() -> int:
    """Pin all images; return the exit code."""
    problems = []
    for path in list_files():
        problems += pin_images(path, fetch_digest)
        print(*(f"{path.relative_to(PROJECT)}: {reference}" for reference in find_references(path)), sep="\n")
    print(*(f"not pinned: {problem}" for problem in problems), sep="\n", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
