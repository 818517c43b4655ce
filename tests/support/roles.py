"""What a user of Airflow may do with the champion, found out by asking for what would fail later anyway."""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen
from uuid import uuid4

from fmnist_tasks.settings import DAG_ID, ROLLBACK_ID, WITHDRAW_ID
from tests.support.airflow_api import AirflowApi

_FORM = "application/x-www-form-urlencoded"
_DECISION = urlencode({"version": "gone", "reason": "why"}).encode()


def create_user(admin: AirflowApi, role: str) -> AirflowApi:
    """The API for a new user of FAB's with that role."""
    name, password = f"{role.lower()}-user", uuid4().hex
    names = {"username": name, "email": f"{name}@example.com", "first_name": role, "last_name": "User"}
    admin.send_request("POST", "/auth/fab/v1/users", **names, roles=[{"name": role}], password=password)
    return AirflowApi(admin.address, name, password)


def find_rights(api: AirflowApi) -> set[str]:
    """Everything that is not refused with 403."""
    approval = f"{api.build_run_path(ROLLBACK_ID, 'gone')}/taskInstances/approval/-1/hitlDetails"
    attempts: dict[str, tuple[str, str, bytes | None]] = {
        "look": ("GET", "/fmnist/", None),
        "try": ("POST", "/fmnist/try/image", b"no image"),
        "approve": ("PATCH", approval, _encode(chosen_options=["Approve"], params_input={})),
        "train": ("POST", f"/api/v2/dags/{DAG_ID}/dagRuns", _encode(logical_date=None, conf={"profile": "no"})),
        "roll back by the page": ("POST", "/fmnist/rollback", _DECISION),
        "withdraw by the page": ("POST", "/fmnist/withdrawals/withdraw", _DECISION),
        "roll back by the DAG": ("POST", f"/api/v2/dags/{ROLLBACK_ID}/dagRuns", _encode(logical_date=None, conf={})),
        "withdraw by the DAG": ("POST", f"/api/v2/dags/{WITHDRAW_ID}/dagRuns", _encode(logical_date=None, conf={})),
        "write a result": (
            "POST",
            f"{api.build_run_path(DAG_ID, 'gone')}/taskInstances/release.promote/xcomEntries",
            _encode(key="return_value", value="{}"),
        ),
        "roll back once more": ("POST", f"{api.build_run_path(ROLLBACK_ID, 'gone')}/clear", _encode(dry_run=True)),
    }
    return {name for name, attempt in attempts.items() if _find_status(api, *attempt) != 403}


def count_switchable_dags(api: AirflowApi) -> int:
    """How many of the DAGs that change the champion the user could pause or unpause, with all others at once."""
    answers = [
        api.send_request("PATCH", f"/api/v2/dags?dag_id_pattern={dag_id}&update_mask=is_paused", is_paused=True)
        for dag_id in (ROLLBACK_ID, WITHDRAW_ID)
    ]
    return sum(int(answer["total_entries"]) for answer in answers)


def _encode(**content: Any) -> bytes:
    return json.dumps(content).encode()


def _find_status(api: AirflowApi, method: str, path: str, body: bytes | None) -> int:
    kind = _FORM if path.startswith("/fmnist/") else "application/json"
    headers = {"Content-Type": kind, "Authorization": f"Bearer {api.token}"}
    try:
        with urlopen(Request(f"{api.address}{path}", body, headers, method=method), timeout=60) as answer:  # noqa: S310
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code
