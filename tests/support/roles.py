"""Find the rights of an Airflow user by requests that change nothing: they are either forbidden or invalid."""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen
from uuid import uuid4

from fmnist_tasks.settings import DAG_ID, ROLLBACK_ID, WITHDRAW_ID
from tests.support.airflow_api import AirflowApi

_FORM_TYPE = "application/x-www-form-urlencoded"
_FORM_DATA = urlencode({"version": "gone", "reason": "why"}).encode()


def create_user(admin: AirflowApi, role: str) -> AirflowApi:
    """Create a FAB user with this role, and return the API signed in as that user."""
    name, password = f"{role.lower()}-user", uuid4().hex
    names = {"username": name, "email": f"{name}@example.com", "first_name": role, "last_name": "User"}
    admin.send_request("POST", "/auth/fab/v1/users", **names, roles=[{"name": role}], password=password)
    return AirflowApi(admin.address, name, password)


def find_rights(api: AirflowApi) -> set[str]:
    """The names of all actions that are not refused with status 403."""
    approval = f"{api.build_run_path(ROLLBACK_ID, 'gone')}/taskInstances/approval/-1/hitlDetails"
    attempts: dict[str, tuple[str, str, bytes | None]] = {
        "look": ("GET", "/fmnist/", None),
        "try": ("POST", "/fmnist/try/image", b"not an image"),
        "approve": ("PATCH", approval, _encode(chosen_options=["Approve"], params_input={})),
        "train": ("POST", f"/api/v2/dags/{DAG_ID}/dagRuns", _encode(logical_date=None, conf={"profile": "unknown"})),
        "roll back by the page": ("POST", "/fmnist/rollback", _FORM_DATA),
        "withdraw by the page": ("POST", "/fmnist/withdrawals/withdraw", _FORM_DATA),
        "roll back by the DAG": ("POST", f"/api/v2/dags/{ROLLBACK_ID}/dagRuns", _encode(logical_date=None, conf={})),
        "withdraw by the DAG": ("POST", f"/api/v2/dags/{WITHDRAW_ID}/dagRuns", _encode(logical_date=None, conf={})),
        "edit a task result": (
            "POST",
            f"{api.build_run_path(DAG_ID, 'gone')}/taskInstances/release.promote/xcomEntries",
            _encode(key="return_value", value="{}"),
        ),
        "clear a rollback": ("POST", f"{api.build_run_path(ROLLBACK_ID, 'gone')}/clear", _encode(dry_run=True)),
    }
    return {name for name, attempt in attempts.items() if _find_status(api, *attempt) != 403}


def count_switchable_dags(api: AirflowApi) -> int:
    """The number of DAGs that change the champion and that the user may pause by a request for several DAGs."""
    responses = [
        api.send_request("PATCH", f"/api/v2/dags?dag_id_pattern={dag_id}&update_mask=is_paused", is_paused=True)
        for dag_id in (ROLLBACK_ID, WITHDRAW_ID)
    ]
    return sum(int(response["total_entries"]) for response in responses)


def _encode(**content: Any) -> bytes:
    return json.dumps(content).encode()


def _find_status(api: AirflowApi, method: str, path: str, body: bytes | None) -> int:
    content_type = _FORM_TYPE if path.startswith("/fmnist/") else "application/json"
    headers = {"Content-Type": content_type, "Authorization": f"Bearer {api.token}"}
    request = Request(f"{api.address}{path}", body, headers, method=method)  # noqa: S310
    try:
        with urlopen(request, timeout=60) as response:  # noqa: S310
            return int(response.status)
    except HTTPError as error:
        with error:
            return error.code
