from __future__ import annotations

import pytest

from fmnist_tasks.significance import holm, mcnemar, wilson_interval


def test_the_wilson_interval_agrees_with_a_hand_computed_one() -> None:
    # 95 of 100: by hand, (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert wilson_interval(95, 100) == (pytest.approx(0.8882, abs=1e-4), pytest.approx(0.9785, abs=1e-4))
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert wilson_interval(9200, 10_000) == (pytest.approx(0.9145, abs=1e-4), pytest.approx(0.9252, abs=1e-4))


def test_mcnemar_counts_only_images_that_one_model_classifies_correctly() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 / 64)  # both tails of six tosses with the same side up
    assert mcnemar(6, 0) == mcnemar(0, 6)
    assert mcnemar(0, 6, one_sided=True) == pytest.approx(1 / 64)
    assert mcnemar(6, 0, one_sided=True) == 1.0


def test_holm_agrees_with_a_hand_computed_correction() -> None:
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])  # adjusted p-values never decrease
    assert holm([0.9, 0.8]) == [1.0, 1.0]
