"""What is asked of a candidate: one row for each check, from the figures that were measured and the policy."""

from __future__ import annotations

from typing import Any

from fmnist_tasks.evaluation import policy
from fmnist_tasks.evaluation.gate import at_least, at_most, finite
from fmnist_tasks.evaluation.policy import Policy
from fmnist_tasks.significance import holm, mcnemar
from fmnist_tasks.verdict import Check, Otherwise

Figures = dict[str, Any]


def checks(asked: Policy, figures: Figures) -> list[Check]:
    """All rows about a candidate; `figures` as `evaluate_tuned` leaves them."""
    return [
        accuracy(asked.accuracy, figures),
        against_champion(asked.champion, figures),
        recall(asked.classes, figures),
        classes_against_champion(asked.classes, figures),
        calibration(asked.calibration, figures),
        *novelty(asked.novelty, figures),
        same_bytes(figures),
        *speed(asked.speed, figures),
    ]


def accuracy(asked: policy.Accuracy, figures: Figures) -> Check:
    """Enough of the test images are classified rightly."""
    found = figures.get("test", {})
    row = at_least("accuracy", found.get("accuracy"), asked.at_least, "test accuracy", asked.otherwise)
    if row.value is None or "interval" not in found:
        return row
    low, high = found["interval"]
    return _with(row, f"{row.reason} (95 % interval {low:.2%} to {high:.2%})")


def against_champion(asked: policy.Champion, figures: Figures) -> Check:
    """Not provably worse than the champion; where nothing can be proved, not lower on validation."""
    name, bound = "champion", f"not worse (exact McNemar test, p < {asked.significance})"
    if row := _nothing_to_compare(name, bound, figures, asked.undecided):
        return row
    champion = figures["champion"]
    gained, lost = champion.get("only_candidate"), champion.get("only_champion")
    validation = champion.get("candidate_validation_accuracy"), champion.get("validation_accuracy")
    if not all(map(finite, (gained, lost, *validation))):
        return Check(name, None, bound, False, f"the comparison with the champion is incomplete ({champion!r:.200})")
    p = mcnemar(lost, gained)
    told = f"{gained} test images are right with it only, {lost} with {champion['version']} only (p = {p:.3f})"
    if p < asked.significance:
        better = gained > lost
        words = "better" if better else "worse"
        return Check(name, p, bound, better, f"{told}: provably {words}", asked.worse)
    not_lower = validation[0] >= validation[1]
    on_validation = f"on validation {validation[0]:.2%} against {validation[1]:.2%}"
    return Check(name, p, bound, not_lower, f"{told}: no difference proved; {on_validation}", asked.undecided)


def recall(asked: policy.Classes, figures: Figures) -> Check:
    """No class is recognised too rarely."""
    rows = figures.get("test", {}).get("classes") or [{}]
    worst = min(rows, key=lambda row: row["recall"] if finite(row.get("recall")) else -1.0)
    what = f"the lowest recall of a class ({worst.get('class')})"
    return at_least("recall of each class", worst.get("recall"), asked.recall_at_least, what, asked.otherwise)


def classes_against_champion(asked: policy.Classes, figures: Figures) -> Check:
    """No class is provably recognised more rarely than by the champion."""
    name, bound = "classes against champion", f"none worse (Holm, p < {asked.significance})"
    if row := _nothing_to_compare(name, bound, figures, asked.otherwise):
        return row
    champion = figures["champion"]
    rows = champion.get("classes") or []
    if not rows or not all(finite(row.get(key)) for row in rows for key in ("only_candidate", "only_champion")):
        return Check(name, None, bound, False, "the comparison by class with the champion is incomplete")
    p_values = holm([mcnemar(row["only_candidate"], row["only_champion"], one_sided=True) for row in rows])
    worse = [f"{row['class']} (p = {p:.4f})" for row, p in zip(rows, p_values, strict=True) if p < asked.significance]
    reason = f"provably recognised more rarely than by the champion: {', '.join(worse)}"
    if not worse:
        reason = f"no class is provably recognised more rarely than by the champion (least p = {min(p_values):.3f})"
    return Check(name, min(p_values), bound, not worse, reason, asked.otherwise)


def calibration(asked: policy.Calibration, figures: Figures) -> Check:
    """Stated probabilities can be taken at their word."""
    found = figures.get("calibration", {})
    what = "the expected calibration error"
    row = at_most("calibration", found.get("error"), asked.error_at_most, what, asked.otherwise, ".4f")
    if row.value is None or "interval" not in found:
        return row
    low, high = found["interval"]
    return _with(row, f"{row.reason} (95 % interval {low:.4f} to {high:.4f})")


def novelty(asked: policy.Novelty, figures: Figures) -> list[Check]:
    """Images that are no clothing are told from clothing, family by family."""
    measured, rows = figures.get("novelty", {}).get("families", {}), []
    for family, bounds in asked.families.items():
        found = measured.get(family, {})
        area, missed = found.get("auroc"), found.get("fpr99")
        rows += [
            at_least(f"{family}, AUROC", area, bounds.auroc_at_least, f"AUROC of {family}", asked.otherwise, ".4f"),
            at_most(
                f"{family}, FPR at 99 % TPR",
                missed,
                bounds.fpr99_at_most,
                f"FPR of {family} at 99 % TPR",
                asked.otherwise,
            ),
        ]
    return rows


def same_bytes(figures: Figures) -> Check:
    """The model that was read back from the store answers, bit for bit, as the one that was measured."""
    found = figures.get("read_back", {})
    differing = found.get("differing")
    passed = differing == 0 and finite(differing) and found.get("sha256") == figures.get("model_sha256") is not None
    reason = "the model was not read back from the store"
    if finite(differing):
        model = str(found.get("sha256"))[:12]
        reason = f"model {model} was read back from the store; {differing:,} predictions differ from those judged"
    return Check("the same bytes", differing if finite(differing) else None, "no prediction differs", passed, reason)


def not_withdrawn(repeated: str | None) -> Check:
    """The candidate repeats no withdrawn release; `repeated` says which one it repeats, and what to do."""
    reason = repeated or "the candidate repeats no withdrawn release"
    return Check("withdrawn releases", None, "none repeated", repeated is None, reason, "hold")


def speed(asked: policy.Speed, figures: Figures) -> list[Check]:
    """The model is fast and small enough to serve."""
    found, otherwise = figures.get("speed", {}), asked.otherwise
    return [
        at_most(
            "one image",
            found.get("single_ms"),
            asked.single_ms_at_most,
            "the 95th percentile of the time for one image, in milliseconds,",
            otherwise,
            ".1f",
        ),
        at_most("loading", found.get("load_seconds"), asked.load_seconds_at_most, "seconds to load", otherwise, ".1f"),
        at_most("size", found.get("bytes"), asked.bytes_at_most, "the size in bytes", otherwise, ",.0f"),
    ]


def _nothing_to_compare(name: str, bound: str, figures: Figures, otherwise: Otherwise) -> Check | None:
    """The row where a champion's figures on the same images cannot be had; None where they can."""
    if "champion" not in figures:
        return Check(name, None, bound, False, "the candidate was not compared with the champion")
    champion = figures["champion"]
    if champion is None:
        return Check(name, None, bound, True, "there is no champion yet")
    if "other_classes" in champion:
        told = f"the champion {champion['version']} knows other classes ({champion['other_classes']})"
        return Check(name, None, bound, False, f"{told}, so that nothing compares", otherwise)
    return None


def _with(row: Check, reason: str) -> Check:
    return Check(row.name, row.value, row.bound, row.passed, reason, row.otherwise)
