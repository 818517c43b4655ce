"""FAB's auth manager, with a separate permission for the DAGs that change the champion.

FAB's roles User and Op may edit all DAGs, and the access control of a DAG can only add to that. Here they may view
`fmnist_rollback` and `fmnist_withdraw`, and respond to an approval. To trigger, clear or pause them, a role must have
the right to edit roles (Admin), or `can edit on DAG:fmnist_rollback`. The same holds for writing the XCom of a task of
`fmnist_retrain`, since a run decides with it what becomes the champion.

`AIRFLOW__CORE__AUTH_MANAGER` names this class, and only Airflow imports it. Airflow looks for `FabAuthManager` in the
name.
"""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.providers.fab.auth_manager.fab_auth_manager import FabAuthManager
from airflow.providers.fab.www.security import permissions

from fmnist_tasks.settings import ROLLBACK_ID, WITHDRAW_ID, find_dataset

_PROTECTED = {ROLLBACK_ID, WITHDRAW_ID}


class ChampionFabAuthManager(FabAuthManager):
    """FAB's auth manager, where a right to all DAGs excludes those that change the champion."""

    def is_authorized_dag(
        self, *, method: Any, user: Any, access_entity: DagAccessEntity | None = None, details: DagDetails | None = None
    ) -> bool:
        """Whether the user may apply the method to the DAG or one of its entities."""
        if not super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details):
            return False
        dag_id = details.id if details else None
        # Whoever writes the results of tasks decides what later tasks publish and promote.
        is_result = access_entity == DagAccessEntity.XCOM and find_dataset(dag_id) is not None
        is_protected = is_result or (dag_id in _PROTECTED and access_entity != DagAccessEntity.HITL_DETAIL)
        return (
            method == "GET"
            or not is_protected
            or self._may_change_champion(ROLLBACK_ID if is_result else str(dag_id), user)
        )

    def get_authorized_dag_ids(self, *, user: Any, method: Any = "GET", **options: Any) -> set[str]:
        """The DAGs to which the user may apply the method."""
        dag_ids = super().get_authorized_dag_ids(user=user, method=method, **options)
        if method == "GET":
            return dag_ids
        return {dag_id for dag_id in dag_ids if dag_id not in _PROTECTED or self._may_change_champion(dag_id, user)}

    def _may_change_champion(self, dag_id: str, user: Any) -> bool:
        resources = (permissions.RESOURCE_ROLE, permissions.resource_name(dag_id, permissions.RESOURCE_DAG))
        return any(self._is_authorized(method="PUT", resource_type=resource, user=user) for resource in resources)
