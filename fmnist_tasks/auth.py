"""FAB's auth manager, with a right of its own for the DAGs that change the champion.

FAB's roles User and Op may edit all DAGs, and what a DAG itself says about access can only add to that. Here they may
look at `fmnist_rollback` and `fmnist_withdraw` and answer an approval; to start, clear or pause them takes a role that
may edit roles (Admin), or one that has been given `can edit on DAG:fmnist_rollback`. So it does to write the results
(XCom) of a task of `fmnist_retrain`, by which a run decides what becomes the champion.

Named in `AIRFLOW__CORE__AUTH_MANAGER`, and imported by Airflow alone. Airflow looks for `FabAuthManager` in the name.
"""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.providers.fab.auth_manager.fab_auth_manager import FabAuthManager
from airflow.providers.fab.www.security import permissions

from fmnist_tasks.settings import DAG_ID, ROLLBACK_ID, WITHDRAW_ID

_PROTECTED = {ROLLBACK_ID, WITHDRAW_ID}


class ChampionFabAuthManager(FabAuthManager):
    """FAB's auth manager, except that a right to all DAGs does not extend to those that change the champion."""

    def is_authorized_dag(
        self, *, method: Any, user: Any, access_entity: DagAccessEntity | None = None, details: DagDetails | None = None
    ) -> bool:
        """Whether the user may do this to the DAG, or to what belongs to it."""
        if not super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details):
            return False
        dag_id = details.id if details else None
        # Whoever writes results of tasks decides what the next ones publish and promote.
        forges = access_entity == DagAccessEntity.XCOM and dag_id == DAG_ID
        protected = forges or (dag_id in _PROTECTED and access_entity != DagAccessEntity.HITL_DETAIL)
        return (
            method == "GET" or not protected or self._may_change_champion(ROLLBACK_ID if forges else str(dag_id), user)
        )

    def get_authorized_dag_ids(self, *, user: Any, method: Any = "GET", **options: Any) -> set[str]:
        """The DAGs to which the user may do this."""
        found = super().get_authorized_dag_ids(user=user, method=method, **options)
        if method == "GET":
            return found
        return {dag_id for dag_id in found if dag_id not in _PROTECTED or self._may_change_champion(dag_id, user)}

    def _may_change_champion(self, dag_id: str, user: Any) -> bool:
        resources = (permissions.RESOURCE_ROLE, permissions.resource_name(dag_id, permissions.RESOURCE_DAG))
        return any(self._is_authorized(method="PUT", resource_type=resource, user=user) for resource in resources)
