"""The password of the workers' queue, kept apart so that the queue's address, which Celery logs, has none."""

from __future__ import annotations

from redis.credentials import CredentialProvider

from fmnist_tasks.credentials import read_secret

USER = "airflow"


class Password(CredentialProvider):
    """Named in the address, `redis://host:6379/0?credential_provider=fmnist_tasks.broker.Password`; Celery makes it."""

    def get_credentials(self) -> tuple[str, str]:
        """What Redis is given on every connection: the user of the queue and `REDIS_PASSWORD`."""
        return USER, read_secret("REDIS_PASSWORD")
