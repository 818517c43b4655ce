"""Several datasets in one Airflow: each has its DAG, its part of the store, its page, and its signatures."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from fmnist_tasks.cli import app
from fmnist_tasks.errors import IntegrityError, SettingsError
from fmnist_tasks.page.activity import Schedule
from fmnist_tasks.page.app import Access, create_app
from fmnist_tasks.registry import champion, releases
from fmnist_tasks.registry.folder import FolderStore
from fmnist_tasks.registry.scoped import ScopedStore
from fmnist_tasks.registry.stores import open_default_store
from fmnist_tasks.settings import PROJECT, Settings, find_dataset, list_datasets, name_dag
from tests.support import synthetic
from tests.support.pipeline import Pipeline
from tests.support.signed_store import make_signing_keys, promote, publish

NAMES = ["birds", "boats"]


@pytest.fixture
def datasets(pipeline: Pipeline) -> Path:
    """The folder of the declarations of two more datasets."""
    folder = Settings.from_environment().datasets
    for name in NAMES:
        declaration = synthetic.write_dataset(folder / name, train=20, test=20)
        text = declaration.read_text().replace('name = "synthetic"', f'name = "{name}"')
        (folder / f"{name}.toml").write_text(text.replace("Synthetic patterns", f"Images of {name}"))
        declaration.unlink()
    return folder


def list_dags() -> dict[str, list[str]]:
    """The DAGs that retrain, each with the names of the assets that it changes."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(PROJECT / "dags" / "fmnist_retrain.py", safe_mode=False)
    assert bag.import_errors == {}
    return {
        dag_id: [asset.name for task in dag.tasks for asset in task.outlets] for dag_id, dag in sorted(bag.dags.items())
    }


def test_each_declaration_has_a_dag_and_an_asset(datasets: Path) -> None:
    assert list_datasets() == NAMES
    assert list_dags() == {
        "fmnist_retrain": ["fmnist_champion_model"],
        "fmnist_retrain_birds": ["fmnist_champion_model_birds"],
        "fmnist_retrain_boats": ["fmnist_champion_model_boats"],
    }
    (datasets / "boats.toml").unlink()
    assert list(list_dags()) == ["fmnist_retrain", "fmnist_retrain_birds"]


@pytest.mark.parametrize("name", ["-birds", ".birds", "two words", "b" * 65, "größe"])
def test_a_file_whose_name_is_not_one_of_a_dataset_has_no_dag(datasets: Path, name: str) -> None:
    (datasets / f"{name}.toml").write_text("name = 1")
    assert list_datasets() == NAMES


@pytest.mark.parametrize("name", ["", *NAMES, "a_b-C9"])
def test_a_dag_id_names_its_dataset(name: str) -> None:
    assert find_dataset(name_dag(name)) == name


@pytest.mark.parametrize("dag_id", [None, "fmnist_predict", "fmnist_retrain_", "fmnist_retrain_a b", "fmnist_retrainx"])
def test_other_dags_have_no_dataset(dag_id: str | None) -> None:
    assert find_dataset(dag_id) is None


def test_a_dataset_without_a_declaration_is_refused_with_those_that_exist(datasets: Path) -> None:
    with pytest.raises(SettingsError, match=r"no dataset 'cats' in \S+; these exist: birds, boats"):
        Settings.from_environment().find_declaration("cats")
    result = CliRunner().invoke(app, ["--dataset", "cats", "champion"])
    assert (result.exit_code, "these exist: birds, boats" in " ".join(result.output.split())) == (1, True)


def test_commands_and_pages_show_one_dataset_only(datasets: Path) -> None:
    for name in NAMES:
        publish(open_default_store(name), f"release-of-{name}")
        promote(open_default_store(name), f"release-of-{name}")
    page = TestClient(create_app(Access(lambda: None, lambda: "ann", lambda _: Schedule())))
    for name, other in (NAMES, reversed(NAMES)):
        result = CliRunner().invoke(app, ["--dataset", name, "champion", "--json"], catch_exceptions=False)
        assert json.loads(result.stdout)["version"] == f"release-of-{name}"
        overview = page.get(f"/datasets/{name}/").text
        assert f"release-of-{name}" in overview
        assert f"release-of-{other}" not in overview
        assert re.search(rf'href="[^"]*/datasets/{other}/"', overview)
        assert f"<code>fmnist --dataset {name} submit FILE</code>" in page.get(f"/datasets/{name}/submit").text
    for path, name in (("/", "synthetic"), *((f"/datasets/{name}/", name) for name in NAMES)):
        assert re.findall(r'aria-current="true">(\w+)<', page.get(path).text) == [name]
    assert "release-of" not in page.get("/").text
    assert "no champion yet" in CliRunner().invoke(app, ["champion"]).output
    assert page.get("/datasets/cats/").status_code == 404


def test_a_withdrawal_on_the_page_of_a_dataset_changes_no_other(datasets: Path) -> None:
    for name in NAMES:
        for version in ("v1", "v2"):
            publish(open_default_store(name), version)
            promote(open_default_store(name), version)
    page = TestClient(create_app(Access(lambda: None, lambda: "ann", lambda _: Schedule())))
    fields = {"version": "v1", "reason": "labels swapped"}
    response = page.post("/datasets/birds/withdrawals/withdraw", data=fields, headers={"sec-fetch-site": "same-origin"})
    assert response.status_code == 200
    withdrawn = {name: list(champion.read_log(open_default_store(name)).withdrawn) for name in NAMES}
    assert withdrawn == {"birds": ["v1"], "boats": []}


def test_documents_that_are_copied_to_another_dataset_are_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.keys = make_signing_keys()
    birds, boats = (ScopedStore(store, name) for name in NAMES)
    publish(birds, "v1")
    promote(birds, "v1")
    assert champion.read_log(birds).champion
    shutil.copytree(tmp_path / "datasets" / "birds", tmp_path / "datasets" / "boats")
    with pytest.raises(IntegrityError, match="copied or renamed"):
        champion.read_log(boats)
    for folder in ("champion", "champion-receipts"):
        shutil.rmtree(tmp_path / "datasets" / "boats" / folder)
    with pytest.raises(IntegrityError, match="copied or renamed"):
        releases.read_manifest(boats, "v1")
