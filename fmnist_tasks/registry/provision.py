"""The init job of the object store: the bucket of the pipeline, the one of the task logs, and a user for each task.

Reads the kind of server, `STORE`, its `MINIO_ENDPOINT`, the administrator's `MINIO_ROOT_USER` and
`MINIO_ROOT_PASSWORD`, and for each role the access key and the secret that its user is to have, `<ROLE>_ACCESS_KEY` and
`<ROLE>_PASSWORD`. A second call changes what differs and nothing else; lifecycle rules that are there stay as they are.
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
from fmnist_tasks.registry.access import Bucket
from fmnist_tasks.registry.lifecycle import RULES, add_rules
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.settings import INCLUDE

PIPELINE, LOGS = "fmnist", "fmnist-logs"
ROLES = {"publisher": PIPELINE, "reader": PIPELINE, "pruner": PIPELINE, "logs": LOGS}  # each with a policy of its name
LOG_DAYS = 90  # a task's log is kept so long
# Every user of MinIO may make service accounts, which outlive a new secret of the user, unless a policy denies it.
_NO_SERVICE_ACCOUNTS = {"Effect": "Deny", "Action": ["admin:CreateServiceAccount", "admin:UpdateServiceAccount"]}
_REGION = "us-east-1"  # so that no request asks for it
_REVOCATION = "minio/admin/v3/revoke-tokens/builtin"  # which MinIO's client for Python lacks


@dataclass(frozen=True)
class User:
    """Who may do what the policy of a role allows, in one bucket only."""

    role: str
    bucket: str
    access_key: str
    secret: str

    def read_statements(self) -> list[dict[str, Any]]:
        """The statements of the role's policy, for its bucket."""
        text = (INCLUDE / "policies" / f"{self.role}.json").read_text().replace("BUCKET", self.bucket)
        statements: list[dict[str, Any]] = json.loads(text)["Statement"]
        return statements


def add_user(admin: MinioAdmin, user: User, policy: str) -> None:
    """Give MinIO the user, and the policy under that name."""
    statements = [*user.read_statements(), _NO_SERVICE_ACCOUNTS]
    admin.policy_add(policy, policy={"Version": "2012-10-17", "Statement": statements})
    if json.loads(admin.user_list()).get(user.access_key, {}).get("status") == "disabled":
        raise AccessError(
            f"the user of {user.role} is disabled. If its secret leaked, set a new {user.role.upper()}_ACCESS_KEY; "
            "otherwise enable it again (`mc admin user enable`)"
        )
    admin.user_add(user.access_key, user.secret)
    if policy not in (json.loads(admin.user_info(user.access_key)).get("policyName") or "").split(","):
        admin.policy_set(policy, user=user.access_key)


def prepare_minio(client: Minio, endpoint: str, root: Credentials, users: list[User]) -> None:
    """Add users and lifecycle rules; end temporary credentials and service accounts of these users.

    The users of earlier versions, whose access keys were the names of roles, are removed.
    """
    address = urlsplit(endpoint)
    provider = StaticProvider(root.access_key, root.secret_key)
    admin = MinioAdmin(endpoint=address.netloc, credentials=provider, secure=address.scheme == "https")
    old = Rule(ENABLED, rule_id="old logs", rule_filter=Filter(prefix=""), expiration=Expiration(days=LOG_DAYS))
    add_rules(client, PIPELINE, RULES)  # a bucket of an earlier version lacks some
    add_rules(client, LOGS, [old])
    for user in users:
        add_user(admin, user, user.role)
        # What somebody with an earlier secret made of it would outlive that secret.
        for account in json.loads(admin.list_service_account(user.access_key))["accounts"] or ():
            admin.delete_service_account(account["accessKey"])
        _send_command(endpoint, root, "POST", f"{_REVOCATION}?fullRevoke=true&user={quote(user.access_key, safe='')}")
    for name in (ROLES.keys() & json.loads(admin.user_list())) - {user.access_key for user in users}:
        admin.user_remove(name)


def prepare_versity(client: Minio, endpoint: str, root: Credentials, users: list[User]) -> None:
    """Add users, and to each bucket a policy that names what each of them may do. There are no lifecycle rules."""
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
    """Status of a command of the server's own, which is signed like S3's; 409 says that a user is there already."""
    address, body, now = urlsplit(f"{endpoint}/{command}"), content.encode(), datetime.now(UTC)
    digest = hashlib.sha256(body).hexdigest()
    headers: DictType = {"Host": address.netloc, "X-Amz-Content-Sha256": digest, "X-Amz-Date": to_amz_date(now)}
    signed = sign_v4_s3(
        method=method, url=address, region=_REGION, headers=headers, credentials=root, content_sha256=digest, date=now
    )
    sent = {name: str(value) for name, value in signed.items()}
    answer = urllib3.request(method, address.geturl(), body=body, headers=sent)
    if answer.status >= HTTPStatus.BAD_REQUEST and answer.status != HTTPStatus.CONFLICT:
        raise AccessError(f"{endpoint} refuses {command.partition('?')[0]}: {answer.data.decode(errors='replace')}")
    return answer.status


def main() -> None:
    """Make what is missing."""
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
        raise SettingsError(f"two of {names} are the same; give each role a user of its own")
    S3Store(Bucket(PIPELINE, endpoint, client)).prepare()
    if not client.bucket_exists(LOGS):
        client.make_bucket(LOGS)
    if os.environ["STORE"] == "versity":
        prepare_versity(client, endpoint, root, users)
    else:
        prepare_minio(client, endpoint, root, users)
    print(f"{endpoint}: buckets {PIPELINE} and {LOGS}; users for {', '.join(ROLES)}")


if __name__ == "__main__":
    main()
