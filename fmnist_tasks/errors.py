"""What can go wrong, sorted by whether trying again can help.

A :class:`PermanentError` cannot pass: the same input gives the same error. A :class:`StoreError` may pass.
Every message names what was wrong, where, and what to do.
"""


class FmnistError(Exception):
    """Anything this project reports on purpose."""


class StoreError(FmnistError):
    """The object store could not be read or written just now; another try may succeed."""


class PermanentError(FmnistError):
    """Trying again with the same input cannot help."""


class SettingsError(PermanentError):
    """A setting or a run parameter has no meaning."""


class DataError(PermanentError):
    """Images or labels are missing, damaged or not what the dataset promises."""


class TrainingError(PermanentError):
    """Training went astray, for instance to a loss that is not a number."""


class ModelError(PermanentError):
    """A model file cannot be trusted, read or reproduced."""


class AccessError(PermanentError):
    """The object store does not let this process in: credentials, rights, clock or certificate."""


class MissingError(PermanentError):
    """A key that should be in the object store is not there."""


class IntegrityError(PermanentError):
    """Stored bytes are not the bytes that were written."""


class ConflictError(PermanentError):
    """Someone else changed what this step relied on."""


class RejectedError(PermanentError):
    """A gate said no; the champion stays."""
