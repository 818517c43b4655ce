"""`make bench-training`: our recipes against the usual Keras recipe for this dataset, interleaved, on this machine.

Prints a table of medians, means, spread and ratios, and writes `training.json` (every run, epoch by epoch) and
`training.png`. Runs that the JSON file has already, of the same recipe on the same kind of machine, are not made again,
so that a benchmark of hours can be stopped and resumed. Others stay in the file and are not counted.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from bench.processes import run_module
from fmnist_tasks.data.declaration import ROLES, read_declaration
from fmnist_tasks.provenance import code_facts, machine_facts
from fmnist_tasks.settings import PROFILES, PROJECT, Settings

GATE, TUNED_REFERENCE = 0.92, 0.931  # the accuracy gate; the fine-tuned accuracy of the reference project
_REQUIRED_AFTER = {"standard": 1, "thorough": 6}  # fitting times of the reference after which an accuracy is required
_COLOURS = {"reference": "#888a85", "quick": "#4e9a06", "standard": "#3465a4", "thorough": "#ce5c00"}

Result = dict[str, Any]


def digest_recipe(recipe: str) -> str:
    """SHA-256 of all that a run follows from: data, code, profile, libraries and the kind of machine."""
    package = PROJECT / "fmnist_tasks"
    programs = [package / "data" / "dataset.py", Path(__file__).with_name("training_run.py")]
    if recipe in PROFILES:
        programs += sorted((package / "model").glob("*.py"))
    machine = [machine_facts()[name] for name in ("processor", "cores", "python")]
    files = read_declaration(Settings.from_environment().dataset).files
    facts = [*(files[role].sha256 for role in ROLES), *map(read_code, programs)]
    facts += [repr(PROFILES.get(recipe)), repr(code_facts()["versions"]), repr(machine)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def read_code(path: Path) -> str:
    """The code of a Python file without comments, docstrings and layout: words do not change a training."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def find_time_to(result: Result, accuracy: float) -> float:
    """Seconds of fitting until the test accuracy was first reached; NaN if it never was."""
    reached = [
        seconds for seconds, value in zip(result["seconds"], result["test_accuracy"], strict=True) if value >= accuracy
    ]
    return reached[0] if reached else math.nan


def find_accuracy_after(result: Result, limit: float) -> float:
    """Test accuracy, %, of the last epoch that had ended after so many seconds of fitting; NaN if none had."""
    ended = sum(seconds <= limit for seconds in result["seconds"])
    return float(100 * result["test_accuracy"][ended - 1]) if ended else math.nan


def compute_gain(result: Result, figure: str) -> float:
    """By how much the tuned model has more of a figure on validation than its base model."""
    return float(result["validation"]["tuned"][figure] - result["validation"]["base"][figure])


def build_table(results: list[Result]) -> Table:
    """What was reached, by recipe, with the reference's fitting time T as the unit of time."""
    by_recipe = {name: [result for result in results if result["recipe"] == name] for name in _COLOURS}
    unit = statistics.mean(result["seconds"][-1] for result in by_recipe["reference"])
    rows = Table(
        "recipe", "what", "median", "mean", "standard deviation", "ratio to T", "runs", box=None, pad_edge=False
    )

    def add_row(recipe: str, what: str, of: Callable[[Result], float], digits: int, ratio: bool = False) -> None:
        values = [of(result) for result in by_recipe[recipe]]
        missed = sum(map(math.isnan, values))
        if missed:  # a mean of those that did would flatter
            median = "never" if missed == len(values) else f"not in {missed}"
            rows.add_row(recipe, what, median, "", "", "", str(len(values)))
            return
        mean = statistics.mean(values)
        figures = [f"{value:.{digits}f}" for value in (statistics.median(values), mean)]
        spread = f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        rows.add_row(recipe, what, *figures, spread, f"{mean / unit:.2f}" if ratio else "", str(len(values)))

    for recipe, runs in by_recipe.items():
        if not runs:
            continue
        add_row(recipe, "fitting, seconds", lambda result: result["seconds"][-1], 1, ratio=True)
        add_row(recipe, "epochs", lambda result: result["epochs"], 1)
        add_row(recipe, "test accuracy, %", lambda result: 100 * result["test_accuracy"][-1], 2)
        for bound in (GATE, TUNED_REFERENCE):
            add_row(recipe, f"seconds to {bound:.1%}", partial(find_time_to, accuracy=bound), 1, ratio=True)
        if recipe == "reference":
            continue
        if limit := _REQUIRED_AFTER.get(recipe):
            name = f"test accuracy after {limit} T, %"
            add_row(recipe, name, partial(find_accuracy_after, limit=limit * unit), 2)
        add_row(recipe, "gain of fine-tuning on validation, points", lambda run: 100 * compute_gain(run, "accuracy"), 2)
        add_row(recipe, "validation loss that it takes away, nats", lambda run: -compute_gain(run, "loss"), 4)
        add_row(
            recipe,
            "test accuracy of the base model, %",
            lambda run: 100 * run["test_accuracy"][run["base_epochs"] - 1],
            2,
        )
        add_row(
            recipe,
            "share of the matmul peak, %",
            lambda run: 100 * run["gigaflops"] / run["machine"]["matmul_gigaflops"],
            1,
        )
        add_row(recipe, "one image, p95, milliseconds", lambda result: result["single_ms"], 2)
        add_row(recipe, "10,000 images, seconds", lambda result: result["many_seconds"], 2)
        add_row(recipe, "published model, MB", lambda result: result["bytes"] / 1e6, 2)
    return rows


def plot_runs(results: list[Result], path: Path) -> None:
    """Test accuracy against seconds of fitting: every run, and the mean of each recipe at its end."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for recipe, colour in _COLOURS.items():
        runs = [result for result in results if result["recipe"] == recipe]
        for number, result in enumerate(runs):
            label = f"{recipe}: {100 * statistics.mean(run['test_accuracy'][-1] for run in runs):.2f} %"
            accuracies = 100 * np.array(result["test_accuracy"])
            axes.plot(result["seconds"], accuracies, color=colour, alpha=0.7, label="" if number else label)
            axes.plot(result["seconds"][-1], accuracies[-1], "o", color=colour, markersize=4)
    for bound in (GATE, TUNED_REFERENCE):
        axes.axhline(100 * bound, color="#555753", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:.0f}" if f"{x:.0f}"[0] in "25" else "")
    axes.set_ylim(86, 96)
    axes.set_xlabel("seconds of fitting")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def main(
    runs: Annotated[int, typer.Option(min=1, help="Seeds of each recipe, from 0 on.")] = 5,
    recipes: Annotated[
        str, typer.Option(help="Which, separated by spaces; all if empty. The reference is always among them.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder for training.json and training.png.")] = PROJECT / "var" / "bench",
) -> None:
    """Measure what is missing, and print."""
    chosen = ["reference", *(recipes.split() if recipes else PROFILES)]
    path, console = out / "training.json", Console(width=120)
    out.mkdir(parents=True, exist_ok=True)
    origins = {recipe: digest_recipe(recipe) for recipe in _COLOURS}
    results: list[Result] = json.loads(path.read_text()) if path.exists() else []
    counted = [result for result in results if result["origin"] == origins.get(result["recipe"])]
    if others := len(results) - len(counted):
        console.print(f"{path}: {others} runs of other code, libraries or machines are kept but not counted")
    known = {(result["recipe"], result["seed"]) for result in counted}
    for seed in range(runs):
        for recipe in chosen:
            if (recipe, seed) not in known:
                measured = run_module("bench.training_run", recipe, str(seed))
                result = {"origin": origins[recipe], **measured}
                results.append(result)
                counted.append(result)
                path.write_text(json.dumps(results, indent=1) + "\n")
                console.print(
                    f"{recipe}, seed {seed}: {result['epochs']} epochs, {result['seconds'][-1]:.1f} s, "
                    f"test accuracy {result['test_accuracy'][-1]:.2%}"
                )
    machines = {
        json.dumps({name: run["machine"][name] for name in ("processor", "cores", "threads", "gpus", "python")})
        for run in counted
    }
    console.print(*machines, code_facts()["versions"])
    peaks = [run["machine"]["matmul_gigaflops"] for run in counted]
    console.print(
        f"matmul peak, float32, gigaflops: median {statistics.median(peaks):.0f}, {min(peaks):.0f} to {max(peaks):.0f}"
    )
    console.print(build_table(counted))
    plot_runs(counted, out / "training.png")


if __name__ == "__main__":
    typer.run(main)
