from __future__ import annotations

from pathlib import Path

import pytest

from fmnist_tasks.provenance import code_facts, machine_facts, processor

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
def test_a_processor_is_told_by_name_and_numbers(cpuinfo: str, name: str) -> None:
    assert processor(cpuinfo) == name


def test_the_machine_has_a_processor_and_cores() -> None:
    facts = machine_facts()
    assert facts["processor"]
    assert facts["cores"] >= 1


def test_the_code_has_a_digest_and_the_versions_that_shape_a_model() -> None:
    facts = code_facts()
    assert len(facts["digest"]) == 64
    assert set(facts["versions"]) == {"h5py", "keras", "numpy", "scikit-learn", "scipy", "tensorflow"}


def test_the_digest_knows_which_file_holds_what(tmp_path: Path) -> None:
    package, include = tmp_path / "package", tmp_path / "include"
    contents = {"model/network.py": "1", "data/network.py": "2", "registry/pruning.py": "3", "page/app.py": "4"}
    for name, text in contents.items():
        (package / name).parent.mkdir(parents=True)
        (package / name).write_text(text)
    include.mkdir()
    (include / "gates.toml").write_text("5")

    def digest(**changes: str) -> str:
        for name, text in (contents | changes).items():
            (package / name).write_text(text)
        return str(code_facts(package, include)["digest"])

    before = digest()
    assert digest(**{"registry/pruning.py": "changed", "page/app.py": "changed"}) == before
    assert digest(**{"model/network.py": "2", "data/network.py": "1"}) != before
    assert digest() == before
    (include / "gates.toml").write_text("changed")
    assert digest() != before
