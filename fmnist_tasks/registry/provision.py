"""The init job of the object store: the bucket of the line, the one of the task logs, and a user for each task.

Reads the administrator's `MINIO_ROOT_USER` and `MINIO_ROOT_PASSWORD`, the server's `MINIO_ENDPOINT`, and for each user
the secret that it is to have, `<USER>_PASSWORD`. A second call changes what differs and nothing else; lifecycle rules
that are there stay as they are.
"""

from __future__ import annotations

import json
import os
from urllib.parse import urlsplit

from minio import Minio, MinioAdmin
from minio.commonconfig import ENABLED, Filter
from minio.credentials.providers import StaticProvider
from minio.lifecycleconfig import Expiration, Rule

from fmnist_tasks.credentials import read_secret
from fmnist_tasks.registry.access import Bucket
from fmnist_tasks.registry.lifecycle import RULES, add_rules
from fmnist_tasks.registry.s3 import S3Store
from fmnist_tasks.settings import INCLUDE

LINE, LOGS = "fmnist", "fmnist-logs"
USERS = {"publisher": LINE, "reader": LINE, "pruner": LINE, "logs": LOGS}  # each named after its policy
LOG_DAYS = 90  # a task's log is kept so long


def add_user(admin: MinioAdmin, name: str, secret: str, policy: str, bucket: str) -> None:
    """A user who may do what one of `include/policies` allows, in that bucket only."""
    text = (INCLUDE / "policies" / f"{policy}.json").read_text().replace("BUCKET", bucket)
    admin.policy_add(name, policy=json.loads(text))
    admin.user_add(name, secret)
    if name not in (json.loads(admin.user_info(name)).get("policyName") or "").split(","):
        admin.policy_set(name, user=name)


def main() -> None:
    """Make what is missing."""
    endpoint = os.environ["MINIO_ENDPOINT"]
    address = urlsplit(endpoint)
    root = StaticProvider(read_secret("MINIO_ROOT_USER"), read_secret("MINIO_ROOT_PASSWORD"))
    secure = address.scheme == "https"
    client = Minio(address.netloc, credentials=root, secure=secure)
    S3Store(Bucket(LINE, endpoint, client)).prepare()
    if not client.bucket_exists(LOGS):
        client.make_bucket(LOGS)
    old = Rule(ENABLED, rule_id="old logs", rule_filter=Filter(prefix=""), expiration=Expiration(days=LOG_DAYS))
    add_rules(client, LINE, RULES)  # a bucket of an earlier version lacks some
    add_rules(client, LOGS, [old])
    admin = MinioAdmin(endpoint=address.netloc, credentials=root, secure=secure)
    for name, bucket in USERS.items():
        add_user(admin, name, read_secret(f"{name.upper()}_PASSWORD"), name, bucket)
    print(f"{endpoint}: buckets {LINE} and {LOGS}; users {', '.join(USERS)}")


if __name__ == "__main__":
    main()
