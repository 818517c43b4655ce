"""`make bench-training`: train the profiles and the baseline, a plain Keras CNN, in turn on this machine.

Prints a table of medians, means, standard deviations and ratios, and writes `training.json` (every run, by epoch) and
`training.png`. It skips runs of the same recipe on the same kind of machine that `training.json` already has, so you
can stop and resume it. Other runs stay in the file and are not counted.

In the file and in arguments, the baseline is called `reference`.
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
from fmnist_tasks.provenance import describe_code, describe_machine
from fmnist_tasks.settings import PROFILES, PROJECT, Settings

GATE, TUNED_REFERENCE = 0.92, 0.931  # the accuracy gate; the fine-tuned accuracy of the reference project
BASELINE = "reference"  # in training.json
_TIME_LIMITS = {"standard": 1, "thorough": 6}  # multiples of T after which the table has the test accuracy
_COLOURS = {BASELINE: "#888a85", "quick": "#4e9a06", "standard": "#3465a4", "thorough": "#ce5c00"}

Result = dict[str, Any]


def digest_recipe(recipe: str) -> str:
    """SHA-256 of everything that a run depends on: data, code, profile, libraries and the kind of machine."""
    package = PROJECT / "fmnist_tasks"
    programs = [package / "data" / "dataset.py", Path(__file__).with_name("training_run.py")]
    if recipe in PROFILES:
        programs += sorted((package / "model").rglob("*.py"))
    machine = [getattr(describe_machine(), name) for name in ("processor", "cores", "python")]
    files = read_declaration(Settings.from_environment().dataset).files
    facts = [*(files[role].sha256 for role in ROLES), *map(read_code, programs)]
    facts += [repr(PROFILES.get(recipe)), repr(describe_code().versions), repr(machine)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def read_code(path: Path) -> str:
    """The code of a Python file without comments, docstrings and layout, which do not change training."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def name_recipe(recipe: str) -> str:
    """The name of a recipe in the table, the picture and the output."""
    return "baseline" if recipe == BASELINE else recipe


def find_time_to(result: Result, accuracy: float) -> float:
    """Training time in seconds until the test accuracy is first reached; NaN if it never is."""
    times = [
        seconds for seconds, value in zip(result["seconds"], result["test_accuracy"], strict=True) if value >= accuracy
    ]
    return times[0] if times else math.nan


def find_accuracy_after(result: Result, limit: float) -> float:
    """Test accuracy, %, of the last epoch that ended within `limit` seconds of training; NaN if none did."""
    epochs = sum(seconds <= limit for seconds in result["seconds"])
    return float(100 * result["test_accuracy"][epochs - 1]) if epochs else math.nan


def compute_gain(result: Result, metric: str) -> float:
    """The difference of a validation metric between the tuned and the base model."""
    return float(result["validation"]["tuned"][metric] - result["validation"]["base"][metric])


def build_table(results: list[Result]) -> Table:
    """The results by recipe; T is the mean training time of the baseline."""
    by_recipe = {name: [result for result in results if result["recipe"] == name] for name in _COLOURS}
    baseline_seconds = statistics.mean(result["seconds"][-1] for result in by_recipe[BASELINE])
    rows = Table(
        "recipe", "metric", "median", "mean", "standard deviation", "ratio to T", "runs", box=None, pad_edge=False
    )

    def add_row(
        recipe: str, metric: str, compute: Callable[[Result], float], digits: int, has_ratio: bool = False
    ) -> None:
        values = [compute(result) for result in by_recipe[recipe]]
        missed = sum(map(math.isnan, values))
        if missed:  # a mean of the other runs would be too good
            median = "never" if missed == len(values) else f"not in {missed} runs"
            rows.add_row(name_recipe(recipe), metric, median, "", "", "", str(len(values)))
            return
        mean = statistics.mean(values)
        cells = [f"{value:.{digits}f}" for value in (statistics.median(values), mean)]
        spread = f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        ratio = f"{mean / baseline_seconds:.2f}" if has_ratio else ""
        rows.add_row(name_recipe(recipe), metric, *cells, spread, ratio, str(len(values)))

    for recipe, runs in by_recipe.items():
        if not runs:
            continue
        add_row(recipe, "training, seconds", lambda result: result["seconds"][-1], 1, has_ratio=True)
        add_row(recipe, "epochs", lambda result: result["epochs"], 1)
        add_row(recipe, "test accuracy, %", lambda result: 100 * result["test_accuracy"][-1], 2)
        for accuracy in (GATE, TUNED_REFERENCE):
            find_time = partial(find_time_to, accuracy=accuracy)
            add_row(recipe, f"seconds to {accuracy:.1%} test accuracy", find_time, 1, has_ratio=True)
        if recipe == BASELINE:
            continue
        if limit := _TIME_LIMITS.get(recipe):
            name = f"test accuracy after {limit} T, %"
            add_row(recipe, name, partial(find_accuracy_after, limit=limit * baseline_seconds), 2)
        add_row(recipe, "gain of fine-tuning on validation, points", lambda run: 100 * compute_gain(run, "accuracy"), 2)
        add_row(recipe, "reduction of validation loss by fine-tuning, nats", lambda run: -compute_gain(run, "loss"), 4)
        add_row(
            recipe,
            "test accuracy of the base model, %",
            lambda run: 100 * run["test_accuracy"][run["base_epochs"] - 1],
            2,
        )
        add_row(
            recipe,
            "share of matrix-product throughput, %",
            lambda run: 100 * run["gigaflops"] / run["machine"]["matmul_gigaflops"],
            1,
        )
        add_row(recipe, "one image, p95, milliseconds", lambda result: result["single_ms"], 2)
        add_row(recipe, "10,000 images, seconds", lambda result: result["many_seconds"], 2)
        add_row(recipe, "released model, MB", lambda result: result["bytes"] / 1e6, 2)
    return rows


def plot_runs(results: list[Result], path: Path) -> None:
    """Plot the test accuracy of every run by training time; the legend has the mean final accuracy of each recipe."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for recipe, colour in _COLOURS.items():
        runs = [result for result in results if result["recipe"] == recipe]
        for number, result in enumerate(runs):
            label = f"{name_recipe(recipe)}: {100 * statistics.mean(run['test_accuracy'][-1] for run in runs):.2f}%"
            accuracies = 100 * np.array(result["test_accuracy"])
            axes.plot(result["seconds"], accuracies, color=colour, alpha=0.7, label="" if number else label)
            axes.plot(result["seconds"][-1], accuracies[-1], "o", color=colour, markersize=4)
    for accuracy in (GATE, TUNED_REFERENCE):
        axes.axhline(100 * accuracy, color="#555753", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:.0f}" if f"{x:.0f}"[0] in "25" else "")
    axes.set_ylim(86, 96)
    axes.set_xlabel("training time, seconds")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="mean final accuracy", frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def main(
    runs: Annotated[int, typer.Option(min=1, help="Number of seeds of each recipe, from 0.")] = 5,
    recipes: Annotated[
        str, typer.Option(help="Profiles, separated by spaces; all if empty. The baseline always runs.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder for training.json and training.png.")] = PROJECT / "var" / "bench",
) -> None:
    """Train the missing models, and print the table."""
    selected = [BASELINE, *(recipes.split() if recipes else PROFILES)]
    path, console = out / "training.json", Console(width=120)
    out.mkdir(parents=True, exist_ok=True)
    origins = {recipe: digest_recipe(recipe) for recipe in _COLOURS}
    results: list[Result] = json.loads(path.read_text()) if path.exists() else []
    counted = [result for result in results if result["origin"] == origins.get(result["recipe"])]
    if ignored := len(results) - len(counted):
        console.print(f"{path}: {ignored} runs with other code, libraries or machines are not counted")
    completed = {(result["recipe"], result["seed"]) for result in counted}
    for seed in range(runs):
        for recipe in selected:
            if (recipe, seed) not in completed:
                result = {"origin": origins[recipe], **run_module("bench.training_run", recipe, str(seed))}
                results.append(result)
                counted.append(result)
                path.write_text(json.dumps(results, indent=1) + "\n")
                console.print(
                    f"{name_recipe(recipe)}, seed {seed}: {result['epochs']} epochs, {result['seconds'][-1]:.1f} s, "
                    f"test accuracy {result['test_accuracy'][-1]:.2%}"
                )
    machines = {
        json.dumps({name: run["machine"][name] for name in ("processor", "cores", "threads", "gpus", "python")})
        for run in counted
    }
    console.print(*machines, describe_code().versions)
    peaks = [run["machine"]["matmul_gigaflops"] for run in counted]
    console.print(
        f"float32 matrix product, GFLOP/s: median {statistics.median(peaks):.0f}, {min(peaks):.0f} to {max(peaks):.0f}"
    )
    console.print(build_table(counted))
    plot_runs(counted, out / "training.png")


if __name__ == "__main__":
    typer.run(main)
