"""The init job of the object store: it creates the buckets of the pipeline and of task logs, and a user for each role.

Reads the kind of server, `STORE`, its address, `MINIO_ENDPOINT`, the administrator's `MINIO_ROOT_USER` and
`MINIO_ROOT_PASSWORD`, and for each role the access key and secret of its user, `<ROLE>_ACCESS_KEY` and
`<ROLE>_PASSWORD`. If it runs again, it changes only what differs. Existing lifecycle rules stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit
from xml.sax.saxutils import escape

import urllib3
from minio import Minio, MinioAdmin
from minio.commonconfig import ENABLED, Filter
from minio.credentials.credentials import Credentials
from minio.credentials.providers import StaticProvider
from minio.helpers import DictType
from minio.lifecycleconfig import Expiration, Rule
from minio.signer import sign_v4_s3
from minio.time import to_amz_date

from fmnist_tasks.credentials import read_secret
from fmnist_tasks.errors import AccessError, SettingsError
from fmnist_tasks.registry.bucket_lifecycle import RULES, add_rules
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.registry.s3_address import Bucket
from fmnist_tasks.settings import INCLUDE

PIPELINE, LOGS = "fmnist", "fmnist-logs"  # buckets
ROLES = {  # each with its bucket; include/policies/<role>.json
    "publisher": PIPELINE,
    "uploader": PIPELINE,
    "reader": PIPELINE,
    "pruner": PIPELINE,
    "logs": LOGS,
}
LOG_DAYS = 90  # for which task logs are stored
# Unless a policy denies it, every user of MinIO may create service accounts, which outlive a change of the secret.
_NO_SERVICE_ACCOUNTS = {"Effect": "Deny", "Action": ["admin:CreateServiceAccount", "admin:UpdateServiceAccount"]}
_REGION = "us-east-1"  # without one, the client requests it
_REVOCATION = "minio/admin/v3/revoke-tokens/builtin"  # MinIO's Python client has no method for it


@dataclass(frozen=True)
class User:
    """A user with the policy of a role, in one bucket."""

    role: str
    bucket: str
    access_key: str
    secret: str

    def read_statements(self) -> list[dict[str, Any]]:
        """Return the statements of the role's policy, for its bucket."""
        text = (INCLUDE / "policies" / f"{self.role}.json").read_text().replace("BUCKET", self.bucket)
        statements: list[dict[str, Any]] = json.loads(text)["Statement"]
        return statements


def add_user(admin: MinioAdmin, user: User, policy: str) -> None:
    """Create or update a user of MinIO and its policy, `policy`; raises :class:`AccessError` for a disabled user."""
    statements = [*user.read_statements(), _NO_SERVICE_ACCOUNTS]
    admin.policy_add(policy, policy={"Version": "2012-10-17", "Statement": statements})
    if json.loads(admin.user_list()).get(user.access_key, {}).get("status") == "disabled":
        raise AccessError(
            f"the user of the role {user.role} is disabled. If its secret has leaked, set a new "
            f"{user.role.upper()}_ACCESS_KEY; otherwise enable the user (`mc admin user enable`)"
        )
    admin.user_add(user.access_key, user.secret)
    if policy not in (json.loads(admin.user_info(user.access_key)).get("policyName") or "").split(","):
        admin.policy_set(policy, user=user.access_key)


def prepare_minio(client: Minio, endpoint: str, root: Credentials, users: list[User]) -> None:
    """Add users and lifecycle rules, and revoke temporary credentials and service accounts of these users.

    Removes the users of earlier versions, whose access keys were the names of roles.
    """
    address = urlsplit(endpoint)
    provider = StaticProvider(root.access_key, root.secret_key)
    admin = MinioAdmin(endpoint=address.netloc, credentials=provider, secure=address.scheme == "https")
    log_rule = Rule(ENABLED, rule_id="old logs", rule_filter=Filter(prefix=""), expiration=Expiration(days=LOG_DAYS))
    add_rules(client, PIPELINE, RULES)  # a bucket of an earlier version does not have all of them
    add_rules(client, LOGS, [log_rule])
    for user in users:
        add_user(admin, user, user.role)
        # Credentials that someone created with an earlier secret would outlive it.
        for account in json.loads(admin.list_service_account(user.access_key))["accounts"] or ():
            admin.delete_service_account(account["accessKey"])
        _send_command(endpoint, root, "POST", f"{_REVOCATION}?fullRevoke=true&user={quote(user.access_key, safe='')}")
    for name in (ROLES.keys() & json.loads(admin.user_list())) - {user.access_key for user in users}:
        admin.user_remove(name)


def prepare_versity(client: Minio, endpoint: str, root: Credentials, users: list[User]) -> None:
    """Add users, and to each bucket a policy with the rights of its users. Versity has no lifecycle rules."""
    for user in users:
        secret = f"<Secret>{escape(user.secret)}</Secret>"
        account = f"<Account><Access>{escape(user.access_key)}</Access>{secret}<Role>user</Role></Account>"
        if _send_command(endpoint, root, "PATCH", "create-user", account) == HTTPStatus.CONFLICT:
            changes = f"<MutableProps>{secret}</MutableProps>"
            _send_command(endpoint, root, "PATCH", f"update-user?access={quote(user.access_key)}", changes)
    for bucket in (PIPELINE, LOGS):
        statements = [
            {"Principal": {"AWS": [user.access_key]}, **statement}
            for user in users
            if user.bucket == bucket
            for statement in user.read_statements()
        ]
        client.set_bucket_policy(bucket, json.dumps({"Version": "2012-10-17", "Statement": statements}))


def _send_command(endpoint: str, root: Credentials, method: str, command: str, content: str = "") -> int:
    """Send an administration command, signed like an S3 request; return its status (409: the user exists).

    Raises :class:`AccessError` if the server refuses it.
    """
    address, body, now = urlsplit(f"{endpoint}/{command}"), content.encode(), datetime.now(UTC)
    digest = hashlib.sha256(body).hexdigest()
    headers: DictType = {"Host": address.netloc, "X-Amz-Content-Sha256": digest, "X-Amz-Date": to_amz_date(now)}
    signed = sign_v4_s3(
        method=method, url=address, region=_REGION, headers=headers, credentials=root, content_sha256=digest, date=now
    )
    signed_headers = {name: str(value) for name, value in signed.items()}
    response = urllib3.request(method, address.geturl(), body=body, headers=signed_headers)
    if response.status >= HTTPStatus.BAD_REQUEST and response.status != HTTPStatus.CONFLICT:
        raise AccessError(f"{endpoint} refuses {command.partition('?')[0]}: {response.data.decode(errors='replace')}")
    return response.status


def main() -> None:
    """Create or update buckets, lifecycle rules and users."""
    endpoint = os.environ["MINIO_ENDPOINT"]
    address = urlsplit(endpoint)
    root = Credentials(read_secret("MINIO_ROOT_USER"), read_secret("MINIO_ROOT_PASSWORD"))
    client = Minio(address.netloc, root.access_key, root.secret_key, secure=address.scheme == "https", region=_REGION)
    users = [
        User(role, bucket, read_secret(f"{role.upper()}_ACCESS_KEY"), read_secret(f"{role.upper()}_PASSWORD"))
        for role, bucket in ROLES.items()
    ]
    if len({user.access_key for user in users}) < len(users):
        names = ", ".join(f"{role.upper()}_ACCESS_KEY" for role in ROLES)
        raise SettingsError(f"two of {names} are the same; give each role its own access key")
    S3Store(Bucket(PIPELINE, endpoint, client)).prepare_bucket()
    if not client.bucket_exists(LOGS):
        client.make_bucket(LOGS)
    if os.environ["STORE"] == "versity":
        prepare_versity(client, endpoint, root, users)
    else:
        prepare_minio(client, endpoint, root, users)
    print(f"{endpoint}: buckets {PIPELINE} and {LOGS}; users for {', '.join(ROLES)}")


if __name__ == "__main__":
    main()
