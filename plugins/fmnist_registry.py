"""Mount the Releases page if Airflow uses this folder and `fmnist_tasks` is on the path but not installed.

An installed package mounts it by its entry point, and Airflow reports a second registration as an import error.
"""

from importlib.metadata import entry_points

if not [point for point in entry_points(group="airflow.plugins") if point.name == "fmnist_registry"]:
    from fmnist_tasks.plugin import Registry

    __all__ = ["Registry"]
