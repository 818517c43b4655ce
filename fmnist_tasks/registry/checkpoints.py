"""Checkpoints: saved states of training, from which a killed task resumes, on any worker.

A checkpoint is the SHA-256 of its content, a signature of that digest if there are keys, and the content: a line of
JSON with the checkpoint's key and the training's identity, then the bytes of the state. With keys, write access to the
store is not enough to forge one. The last two checkpoints are stored: if the newer one is damaged, the older one is
used.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

from fmnist_tasks.errors import IntegrityError, MissingError, StoreError
from fmnist_tasks.registry.store import Store

log = logging.getLogger(__name__)

_DIGEST, _SIGNATURE = hashlib.sha256().digest_size, 64  # bytes


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of the training of one model: `checkpoints/<run_id>/<training>/<number>`."""

    store: Store
    run_id: str
    training: str
    identity: dict[str, Any]  # JSON: data, code and recipe; a checkpoint with another identity is not used

    def save(self, number: int, state: bytes) -> None:
        """Store the state as the newest checkpoint, and delete all others but the one before it.

        If the store does not respond, the error is logged and training continues without this checkpoint.
        """
        try:
            key = self._make_key(number)
            self.store.put(key, self._pack(key, state))
            keys = self._list_keys()
            previous = [other for other in keys if other < key][:1]
            for other in set(keys) - {key, *previous}:  # older ones, and those of an earlier training
                self.store.delete(other)
        except StoreError as error:
            log.warning("checkpoint %d was not saved; training continues: %s", number, error)

    def load_latest(self) -> bytes | None:
        """Return the state of the newest checkpoint that is intact and belongs to this training, or None."""
        for key in self._list_keys():
            try:
                state = self._unpack(key, self.store.get(key))
            except (IntegrityError, MissingError) as error:  # missing: a second copy of the task has deleted it
                log.warning("%s", error)
            else:
                log.info("resuming from %s", key)
                return state
        return None

    @property
    def _prefix(self) -> str:
        return f"checkpoints/{self.run_id}/{self.training}/"

    def _make_key(self, number: int) -> str:
        return f"{self._prefix}{number:06d}"

    def _list_keys(self) -> list[str]:
        """Newest first."""
        return sorted((stat.key for stat in self.store.list(self._prefix)), reverse=True)

    def _make_header(self, key: str) -> bytes:
        return json.dumps({"key": key, "identity": self.identity}, sort_keys=True).encode()

    def _pack(self, key: str, state: bytes) -> bytes:
        content = self._make_header(key) + b"\n" + state
        digest = hashlib.sha256(content).digest()
        return digest + self.store.keys.sign_bytes(digest) + content

    def _unpack(self, key: str, data: bytes) -> bytes:
        start = _DIGEST + (_SIGNATURE if self.store.keys.trusted else 0)
        digest, signature, content = data[:_DIGEST], data[_DIGEST:start], data[start:]
        if not self.store.keys.is_valid_signature(digest, signature):
            raise IntegrityError(f"{key}: this checkpoint has no valid signature; trying the one before it")
        if hashlib.sha256(content).digest() != digest:
            raise IntegrityError(f"{key}: this checkpoint was changed or truncated; trying the one before it")
        header, _, state = content.partition(b"\n")
        if header != self._make_header(key):
            raise IntegrityError(
                f"{key}: this checkpoint belongs to another run, or to other data, code or hyperparameters; it is not "
                "used"
            )
        return state


def delete_checkpoints(store: Store, run_id: str) -> None:
    """Delete all checkpoints of a run, whose training tasks have ended."""
    for key in [stat.key for stat in store.list(f"checkpoints/{run_id}/")]:
        store.delete(key)
