"""Documents of the outbox, and of the hourly watch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fmnist_tasks.schemas.base import Document, Time


class SavedAlert(Document):
    """`alerts/pending/ID.json`, later below `delivered/` or `undeliverable/`: an alert with what its message needs."""

    event: str
    dataset: str = ""  # empty: the default dataset
    dag_id: str  # empty: from the Releases page or a shell
    run_id: str | None
    task_id: str
    text: str
    headline: str
    champion: str  # a sentence about the champion of that time
    created: Time  # by the store's clock
    reasons: list[str] = Field(default_factory=list)  # why it could not be delivered


class Attempt(Document):
    """`alerts/pending/ID.CHANNEL.NUMBER.json`: an attempt of a channel to deliver an alert."""

    number: Annotated[int, Field(ge=0, le=999_999)]
    status: Literal["open", "failed", "delivered"]
    time: Time
    writer: str = ""  # identifies the process
    reason: str = ""
    repeated: bool = False  # whether its message was labelled as a possible repeat
    unsure: bool = False  # whether a failed attempt may have been delivered

    @property
    def may_have_arrived(self) -> bool:
        """Whether this attempt or an earlier one may have been delivered without confirmation."""
        return self.repeated or self.unsure or self.status == "open"


class WatchStart(Document):
    """`alerts/watch.json`: when the watch first ran."""

    time: Time
