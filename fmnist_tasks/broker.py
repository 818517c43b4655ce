"""The password of the workers' queue from the environment, so that the queue's address, which Celery logs, has none."""

from __future__ import annotations

import os

from redis.credentials import CredentialProvider


class Password(CredentialProvider):
    """Named in the address, `redis://host:6379/0?credential_provider=fmnist_tasks.broker.Password`; Celery makes it."""

    def get_credentials(self) -> tuple[str]:
        """What Redis is given on every connection: `REDIS_PASSWORD`."""
        return (os.environ["REDIS_PASSWORD"],)
