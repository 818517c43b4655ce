"""Rules by which an S3 server removes what a versioned bucket would keep for ever: earlier and deleted versions."""

from __future__ import annotations

import base64
import hashlib
from xml.etree import ElementTree

from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.error import S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, NoncurrentVersionExpiration, Rule
from minio.xml import marshal

VERSION_DAYS = 30  # what was deleted or replaced can be restored for so long, and takes space


def _forget_versions(rule_id: str, prefix: str, days: int) -> Rule:
    return Rule(
        ENABLED,
        rule_id=rule_id,
        rule_filter=Filter(prefix=prefix),
        expiration=Expiration(expired_object_delete_marker=True),
        noncurrent_version_expiration=NoncurrentVersionExpiration(noncurrent_days=days),
    )


RULES = [
    _forget_versions("checkpoints", "checkpoints/", 1),  # they change with every epoch
    _forget_versions("earlier versions", "", VERSION_DAYS),
]


def add_rules(client: Minio, bucket: str, rules: list[Rule]) -> None:
    """Add the rules whose ids the bucket lacks. All others stay as they are, whoever has set them."""
    try:
        # The client's own classes would lose what they do not know of a rule.
        found = ElementTree.fromstring(client._execute("GET", bucket, query_params={"lifecycle": ""}).data)  # noqa: S314
    except S3Error as error:
        if error.code != "NoSuchLifecycleConfiguration":
            raise
        client.set_bucket_lifecycle(bucket, LifecycleConfig(rules))
        return
    namespace = found.tag.removesuffix("LifecycleConfiguration")
    known = {rule.findtext(f"{namespace}ID") for rule in found.iter(f"{namespace}Rule")}
    if not (missing := [rule for rule in rules if rule.rule_id not in known]):
        return
    for element in ElementTree.fromstring(marshal(LifecycleConfig(missing))):  # noqa: S314 - our own
        for part in element.iter():
            part.tag = namespace + part.tag.rpartition("}")[2]
        found.append(element)
    body = ElementTree.tostring(found)
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    client._execute("PUT", bucket, body=body, headers={"Content-MD5": digest}, query_params={"lifecycle": ""})
