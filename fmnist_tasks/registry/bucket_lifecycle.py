"""Lifecycle rules of the bucket: without them, a versioned bucket stores replaced and deleted objects forever."""

from __future__ import annotations

import base64
import hashlib
from xml.etree import ElementTree

from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.error import S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, NoncurrentVersionExpiration, Rule
from minio.xml import marshal

VERSION_DAYS = 30  # for which a deleted or replaced object can be restored, and takes space


def _make_expiration_rule(rule_id: str, prefix: str, days: int) -> Rule:
    return Rule(
        ENABLED,
        rule_id=rule_id,
        rule_filter=Filter(prefix=prefix),
        expiration=Expiration(expired_object_delete_marker=True),
        noncurrent_version_expiration=NoncurrentVersionExpiration(noncurrent_days=days),
    )


RULES = [
    _make_expiration_rule("checkpoints", "checkpoints/", 1),  # they change with every epoch
    _make_expiration_rule("earlier versions", "", VERSION_DAYS),
]


def add_rules(client: Minio, bucket: str, rules: list[Rule]) -> None:
    """Add the rules whose IDs the bucket does not have; its other rules stay as they are."""
    try:
        # XML, since the client's classes would drop the parts of a rule that they do not know.
        configuration = ElementTree.fromstring(client._execute("GET", bucket, query_params={"lifecycle": ""}).data)  # noqa: S314
    except S3Error as error:
        if error.code != "NoSuchLifecycleConfiguration":
            raise
        client.set_bucket_lifecycle(bucket, LifecycleConfig(rules))
        return
    namespace = configuration.tag.removesuffix("LifecycleConfiguration")
    existing = {rule.findtext(f"{namespace}ID") for rule in configuration.iter(f"{namespace}Rule")}
    if not (missing := [rule for rule in rules if rule.rule_id not in existing]):
        return
    for rule in ElementTree.fromstring(marshal(LifecycleConfig(missing))):  # noqa: S314 - our own XML
        for element in rule.iter():
            element.tag = namespace + element.tag.rpartition("}")[2]
        configuration.append(rule)
    body = ElementTree.tostring(configuration)
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    client._execute("PUT", bucket, body=body, headers={"Content-MD5": digest}, query_params={"lifecycle": ""})
