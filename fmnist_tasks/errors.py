"""The errors of this project, by whether a retry can help.

A :class:`PermanentError` occurs again with the same input. A :class:`StoreError` may be gone at the next attempt.
Every message says what was wrong, where, and what to do.
"""


class FmnistError(Exception):
    """Base of all errors that this project raises on purpose."""


class StoreError(FmnistError):
    """The object store cannot be read or written at the moment; a retry may succeed."""


class PermanentError(FmnistError):
    """A retry with the same input cannot help."""


class SettingsError(PermanentError):
    """A setting or a run parameter is not valid."""


class DataError(PermanentError):
    """Images or labels are missing, damaged or not as the dataset declares them."""


class TrainingError(PermanentError):
    """Training has diverged, for instance to a loss that is not a number."""


class ModelError(PermanentError):
    """A model file cannot be trusted, read or reproduced."""


class AccessError(PermanentError):
    """The object store denies access to this process: credentials, rights, clock or certificate."""


class MissingError(PermanentError):
    """A key that should exist is missing from the object store."""


class IntegrityError(PermanentError):
    """Stored bytes are not the bytes that were written."""


class ConflictError(PermanentError):
    """Another process has changed what this step relies on."""


class RejectedError(PermanentError):
    """A gate or a rule does not allow this; the champion stays."""


# One object cannot be read, but others may be readable.
READ_ERRORS = (AccessError, IntegrityError, MissingError)
