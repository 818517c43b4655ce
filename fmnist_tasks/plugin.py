"""The Releases page in Airflow's navigation, and the report on a tab of each run.

Every Airflow process imports the plugins, but only the API server needs the app, so the app is imported on demand.
"""

from functools import cached_property
from typing import Annotated, Any

from airflow.plugins_manager import AirflowPlugin

# Relative to Airflow's own address, which may have a path (`AIRFLOW__API__BASE_URL`).
VIEWS = [
    {"name": "Releases", "href": "fmnist/", "destination": "nav", "url_route": "fmnist"},
    {
        "name": "Report",
        "href": "fmnist/dags/{DAG_ID}/runs/{RUN_ID}",
        "destination": "dag_run",
        "url_route": "fmnist_report",
    },
]


class Registry(AirflowPlugin):
    """Mounts the page behind Airflow's login."""

    name = "fmnist_registry"
    external_views = VIEWS

    # Airflow declares a list, which it only reads; creating it on demand saves other processes the imports.
    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The app: users who may see plugins can read, users who may trigger a rollback can make changes."""
        from threading import Thread

        from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
        from airflow.api_fastapi.core_api.security import get_user, requires_access_dag, requires_access_view
        from fastapi import Depends

        from fmnist_tasks.page.activity import read_schedule
        from fmnist_tasks.page.app import Access, create_app
        from fmnist_tasks.settings import ROLLBACK_ID

        def get_editor(
            user: Annotated[Any, Depends(get_user)],
            allowed: Annotated[None, Depends(requires_access_dag("POST", DagAccessEntity.RUN, ROLLBACK_ID))],
        ) -> str:
            return str(user.get_name())

        app = create_app(Access(requires_access_view(AccessView.PLUGINS), get_editor, read_schedule))
        Thread(target=app.state.read_ahead, name="fmnist-read-ahead", daemon=True).start()
        return [{"app": app, "url_prefix": "/fmnist", "name": "Releases"}]
