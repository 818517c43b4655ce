from __future__ import annotations

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
    assert set(facts["versions"]) == {"tensorflow", "keras", "numpy", "scikit-learn"}
