"""Airflow finds the plugin once: by the entry point of the installed package, or else in plugins/."""

from __future__ import annotations

import importlib.metadata
import runpy

import pytest
from airflow import plugins_manager

from fmnist_tasks.settings import PROJECT

FILE = str(PROJECT / "plugins" / "fmnist_registry.py")


def test_airflow_loads_the_plugin_once_and_without_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins_manager.settings, "PLUGINS_FOLDER", str(PROJECT / "plugins"))
    plugins, errors = plugins_manager._get_plugins.__wrapped__()
    assert errors == {}
    assert [plugin.name for plugin in plugins].count("fmnist_registry") == 1


def test_the_folder_provides_the_plugin_without_package_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Registry" not in runpy.run_path(FILE)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [])
    assert runpy.run_path(FILE)["Registry"].name == "fmnist_registry"
