from __future__ import annotations

from pathlib import Path

import pytest

from fmnist_tasks.provenance import _NOT_HASHED, describe_code, describe_machine, find_processor
from fmnist_tasks.settings import INCLUDE, PROJECT

CPUINFO = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: A processor: fast\n\nprocessor\t: 1\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (CPUINFO, "A processor: fast (family 26, model 2)"),
        ("model name\t: Another\n", "Another (family None, model None)"),
        ("Features\t: fp asimd\n", ""),
        ("", ""),
    ],
)
def test_a_processor_is_described_by_name_and_numbers(cpuinfo: str, name: str) -> None:
    assert find_processor(cpuinfo) == name


def test_the_machine_has_a_processor_and_cores() -> None:
    facts = describe_machine()
    assert facts.processor
    assert facts.cores
    assert facts.cores >= 1


def test_the_code_has_a_digest_and_the_versions_that_shape_a_model() -> None:
    facts = describe_code()
    assert len(facts.digest) == 64
    assert set(facts.versions) == {"h5py", "keras", "numpy", "scikit-learn", "scipy", "tensorflow"}


def test_every_module_that_the_digest_omits_exists() -> None:
    package = PROJECT / "fmnist_tasks"
    assert {part for path in package.rglob("*.py") for part in path.relative_to(package).parts} >= _NOT_HASHED


def test_the_gates_in_use_are_part_of_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = describe_code().digest
    gates = tmp_path / "gates.toml"
    gates.write_bytes((INCLUDE / "gates.toml").read_bytes())
    monkeypatch.setenv("FMNIST_GATES", str(gates))
    assert describe_code().digest == default
    gates.write_text(gates.read_text().replace("0.92", "0.93"))
    assert describe_code().digest != default


def test_the_digest_depends_on_names_and_contents_of_files(tmp_path: Path) -> None:
    package, include = tmp_path / "package", tmp_path / "include"
    contents = {"model/network.py": "1", "data/network.py": "2", "registry/pruning.py": "3", "page/app.py": "4"}
    for name, text in contents.items():
        (package / name).parent.mkdir(parents=True)
        (package / name).write_text(text)
    include.mkdir()
    gates = tmp_path / "gates.toml"
    gates.write_text("5")

    def digest(**changes: str) -> str:
        for name, text in (contents | changes).items():
            (package / name).write_text(text)
        return describe_code(package, include, gates).digest

    before = digest()
    assert digest(**{"registry/pruning.py": "changed", "page/app.py": "changed"}) == before
    assert digest(**{"model/network.py": "2", "data/network.py": "1"}) != before
    assert digest() == before
    gates.write_text("changed")
    assert digest() != before
