"""Alerts: people are notified by mail and whatever Apprise knows, at least once for each channel.

`events` says what there is to report, `message` how it reads, `channels` how it is delivered, `outbox` keeps it in the
store until it is, and `callbacks` and `watch` find what went wrong.
"""

from fmnist_tasks.alerts.callbacks import approval_requested, run_timed_out, task_failed
from fmnist_tasks.alerts.events import Alert
from fmnist_tasks.alerts.sending import airflow_address, flush, send

__all__ = ["Alert", "airflow_address", "approval_requested", "flush", "run_timed_out", "send", "task_failed"]
