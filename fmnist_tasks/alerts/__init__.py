"""Alerts by e-mail and Apprise, delivered at least once through each channel.

`callbacks` and `watch` find what to report, `events` defines the kinds of alerts, `message` renders them, `outbox`
stores them until they are delivered, and `channels` delivers them.
"""

from fmnist_tasks.alerts.callbacks import approval_requested, run_timed_out, task_failed
from fmnist_tasks.alerts.events import Alert
from fmnist_tasks.alerts.sending import airflow_address, flush, send

__all__ = ["Alert", "airflow_address", "approval_requested", "flush", "run_timed_out", "send", "task_failed"]
