"""States of a training under way, so that one that was killed goes on, here or on another worker.

A checkpoint is the SHA-256 of its content, the signature of that if there are keys, and the content: one line of JSON
with its number and what it belongs to, and the bytes of the state. Whoever may only write the store cannot make one.
The last two are kept: if the newer one is damaged, the one before it serves.
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
    """The checkpoints of one training of a run: `checkpoints/<run_id>/<training>/<number>`."""

    store: Store
    run_id: str
    training: str
    identity: dict[str, Any]  # JSON: data, code and recipe; a checkpoint with another one is not taken

    def save(self, number: int, state: bytes) -> None:
        """Keep the state as the newest, and only the one before it.

        A store that does not answer costs the way back to this state, not the training: it is logged.
        """
        try:
            key = self._key(number)
            self.store.put(key, self._packed(key, state))
            keys = self._keys()
            before = [other for other in keys if other < key][:1]
            for other in set(keys) - {key, *before}:  # older ones, or a former training's
                self.store.delete(other)
        except StoreError as error:
            log.warning("checkpoint %d was not kept, training goes on: %s", number, error)

    def latest(self) -> bytes | None:
        """The state of the newest checkpoint that is intact and belongs to this training, if there is one."""
        for key in self._keys():
            try:
                state = self._unpacked(key, self.store.get(key))
            except (IntegrityError, MissingError) as error:  # missing if a second copy of the task deleted it
                log.warning("%s", error)
            else:
                log.info("going on from %s", key)
                return state
        return None

    @property
    def _prefix(self) -> str:
        return f"checkpoints/{self.run_id}/{self.training}/"

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:06d}"

    def _keys(self) -> list[str]:
        """Newest first."""
        return sorted((stat.key for stat in self.store.list(self._prefix)), reverse=True)

    def _header(self, key: str) -> bytes:
        return json.dumps({"key": key, "identity": self.identity}, sort_keys=True).encode()

    def _packed(self, key: str, state: bytes) -> bytes:
        content = self._header(key) + b"\n" + state
        digest = hashlib.sha256(content).digest()
        return digest + self.store.keys.sign_bytes(digest) + content

    def _unpacked(self, key: str, data: bytes) -> bytes:
        start = _DIGEST + (_SIGNATURE if self.store.keys.trusted else 0)
        digest, signature, content = data[:_DIGEST], data[_DIGEST:start], data[start:]
        if not self.store.keys.has_signed(digest, signature):
            raise IntegrityError(f"{key}: a checkpoint without a valid signature; the one before it is tried")
        if hashlib.sha256(content).digest() != digest:
            raise IntegrityError(f"{key}: a checkpoint that was changed or cut short; the one before it is tried")
        header, _, state = content.partition(b"\n")
        if header != self._header(key):
            raise IntegrityError(f"{key}: a checkpoint of another run, data, code or recipe; it is not used")
        return state


def clear(store: Store, run_id: str) -> None:
    """Delete all checkpoints of the run: its trainings have ended, and their results are kept."""
    for key in [stat.key for stat in store.list(f"checkpoints/{run_id}/")]:
        store.delete(key)
