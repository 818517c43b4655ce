"""A worker preloads libraries for the tasks that it forks; these import the project's code again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fmnist_tasks.settings import INCLUDE

_WORKER = """
import json, os, sys
import fmnist_tasks.preload
print(json.dumps(sorted(sys.modules)), flush=True)
task = os.fork()
if task == 0:
    import keras, numpy as np
    layers = [keras.Input((28, 28, 1)), keras.layers.Conv2D(8, 3), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    model.fit(np.ones((256, 28, 28, 1)), np.ones((256, 10)), batch_size=32, verbose=0)
    os._exit(7)
print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(task, 0)[1])))
"""


@pytest.mark.integration
def test_a_forked_task_trains_with_the_imports_of_its_worker() -> None:
    worker = subprocess.run([sys.executable, "-c", _WORKER], capture_output=True, text=True, timeout=300)
    assert worker.returncode == 0, worker.stderr
    assert worker.stderr == "", "TensorFlow's start-up messages"
    modules, exit_code = (json.loads(line) for line in worker.stdout.splitlines())
    assert exit_code == 7
    assert {"tensorflow", "great_expectations", "scipy.stats", "matplotlib.figure", "minio", "PIL.Image"} <= set(
        modules
    )
    assert {f"sklearn.{name}" for name in ("decomposition", "metrics", "model_selection", "pipeline")} <= set(modules)
    project_modules = {name for name in modules if name.startswith("fmnist_tasks")}
    assert project_modules == {
        f"fmnist_tasks{name}" for name in ("", ".preload", ".data", ".model", ".model.libraries")
    }


def test_workers_of_the_cluster_preload_the_libraries() -> None:
    settings = (INCLUDE / "cluster" / "airflow.env").read_text()
    assert '"imports": ["fmnist_tasks.preload"]' in settings


@pytest.mark.integration
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/null"])
def test_tensorflow_is_imported_without_standard_error(redirection: str) -> None:
    program = f"{sys.executable} -c 'from fmnist_tasks.model.libraries import tf; print(tf.__version__)' {redirection}"
    output = subprocess.run(["sh", "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert output.startswith("2.")


def test_what_a_failed_import_prints_is_shown() -> None:
    program = """
import os, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "keras":
            os.write(2, b"no AVX")
            raise ImportError("keras does not start")
sys.meta_path.insert(0, Finder())
import fmnist_tasks.model.libraries
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert "no AVX" in result.stderr
    assert "keras does not start" in result.stderr
