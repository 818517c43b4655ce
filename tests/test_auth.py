"""Who may change the champion: decisions on top of FAB's, which are replaced here. Compose's tests have real ones."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.providers.fab.auth_manager.fab_auth_manager import FabAuthManager

from fmnist_tasks.auth import ChampionFabAuthManager

DAGS = {"fmnist_retrain", "fmnist_rollback", "fmnist_withdraw", "another"}
# Each user is the set of resources that it may edit.
OP: frozenset[str] = frozenset()
ADMIN = frozenset({"Roles"})
RELEASE_MANAGER = frozenset({"DAG:fmnist_rollback"})


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> ChampionFabAuthManager:
    """FAB grants everybody all DAGs, as it does to the roles User and Op."""

    def is_authorized(self: Any, *, method: str, resource_type: str, user: frozenset[str]) -> bool:
        return method == "PUT" and resource_type in user

    monkeypatch.setattr(FabAuthManager, "is_authorized_dag", lambda self, **_: True)
    monkeypatch.setattr(FabAuthManager, "get_authorized_dag_ids", lambda self, **_: set(DAGS))
    monkeypatch.setattr(FabAuthManager, "_is_authorized", is_authorized)
    return object.__new__(ChampionFabAuthManager)  # without a web application


@pytest.mark.parametrize(
    ("dag_id", "entity", "method", "allowed"),
    [
        ("fmnist_rollback", None, "GET", {OP, ADMIN, RELEASE_MANAGER}),
        ("fmnist_rollback", None, "PUT", {ADMIN, RELEASE_MANAGER}),
        ("fmnist_rollback", DagAccessEntity.RUN, "POST", {ADMIN, RELEASE_MANAGER}),
        ("fmnist_rollback", DagAccessEntity.HITL_DETAIL, "PUT", {OP, ADMIN, RELEASE_MANAGER}),
        ("fmnist_withdraw", DagAccessEntity.RUN, "POST", {ADMIN}),
        ("fmnist_retrain", DagAccessEntity.RUN, "POST", {OP, ADMIN, RELEASE_MANAGER}),
        ("fmnist_retrain", DagAccessEntity.XCOM, "POST", {ADMIN, RELEASE_MANAGER}),
        ("fmnist_retrain", DagAccessEntity.XCOM, "GET", {OP, ADMIN, RELEASE_MANAGER}),
        ("another", DagAccessEntity.XCOM, "POST", {OP, ADMIN, RELEASE_MANAGER}),
        (None, DagAccessEntity.RUN, "POST", {OP, ADMIN, RELEASE_MANAGER}),
    ],
)
def test_only_some_users_may_trigger_what_changes_the_champion(
    manager: ChampionFabAuthManager,
    dag_id: str | None,
    entity: DagAccessEntity | None,
    method: str,
    allowed: set[frozenset[str]],
) -> None:
    details = DagDetails(id=dag_id) if dag_id else None
    decisions = {
        user: manager.is_authorized_dag(method=method, user=user, access_entity=entity, details=details)
        for user in (OP, ADMIN, RELEASE_MANAGER)
    }
    assert {user for user, is_allowed in decisions.items() if is_allowed} == allowed


def test_what_fab_denies_stays_denied(manager: ChampionFabAuthManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FabAuthManager, "is_authorized_dag", lambda self, **_: False)
    for method in ("GET", "PUT"):
        assert not manager.is_authorized_dag(method=method, user=ADMIN, details=DagDetails(id="fmnist_rollback"))


def test_the_list_of_dags_follows_the_same_rules(manager: ChampionFabAuthManager) -> None:
    assert manager.get_authorized_dag_ids(user=OP) == DAGS
    assert manager.get_authorized_dag_ids(user=OP, method="PUT") == {"fmnist_retrain", "another"}
    assert manager.get_authorized_dag_ids(user=RELEASE_MANAGER, method="PUT") == DAGS - {"fmnist_withdraw"}
    assert manager.get_authorized_dag_ids(user=ADMIN, method="PUT") == DAGS
