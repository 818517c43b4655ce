"""The registry page in Airflow's navigation, and a run's report on a tab of the run.

Airflow executes every file in this folder in every one of its processes, so that all else is imported when it is asked
for: only the API server asks for the app.
"""

from functools import cached_property
from typing import Annotated, Any

from airflow.plugins_manager import AirflowPlugin

# Relative to Airflow's own address, which may have a path (`AIRFLOW__API__BASE_URL`).
VIEWS = [
    {"name": "Releases", "href": "fmnist/", "destination": "nav", "url_route": "fmnist"},
    {"name": "Report", "href": "fmnist/runs/{RUN_ID}", "destination": "dag_run", "url_route": "fmnist_report"},
]


class Registry(AirflowPlugin):
    """Mounts the page behind Airflow's login."""

    name = "fmnist_registry"
    external_views = VIEWS

    # Airflow declares a list, which it only reads; made on request, it costs other processes no imports.
    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The app; whoever may see Airflow's plugins may read, whoever may start a rollback may do so here."""
        from threading import Thread

        from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
        from airflow.api_fastapi.core_api.security import get_user, requires_access_dag, requires_access_view
        from fastapi import Depends

        from fmnist_tasks.page.app import create_app
        from fmnist_tasks.settings import ROLLBACK_ID

        def editor(
            user: Annotated[Any, Depends(get_user)],
            allowed: Annotated[None, Depends(requires_access_dag("POST", DagAccessEntity.RUN, ROLLBACK_ID))],
        ) -> str:
            return str(user.get_name())

        app = create_app(signed_in=requires_access_view(AccessView.PLUGINS), may_edit=editor)
        Thread(target=app.state.read_ahead, name="fmnist-read-ahead", daemon=True).start()
        return [{"app": app, "url_prefix": "/fmnist", "name": "Releases"}]
