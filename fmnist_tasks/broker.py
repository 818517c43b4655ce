"""The password of the task queue. It is not in the queue's address, because Celery logs the address."""

from __future__ import annotations

from redis.credentials import CredentialProvider

from fmnist_tasks.credentials import read_secret

USER = "airflow"


class Password(CredentialProvider):
    """Credentials for Redis. Celery creates it, since the queue's address names it.

    `redis://host:6379/0?credential_provider=fmnist_tasks.broker.Password`
    """

    def get_credentials(self) -> tuple[str, str]:
        """User and password (`REDIS_PASSWORD`) for each connection to Redis."""
        return USER, read_secret("REDIS_PASSWORD")
