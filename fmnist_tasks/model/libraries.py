"""TensorFlow and Keras, imported without TensorFlow's start-up messages.

TensorFlow writes them to file descriptor 2 during the import, at every log level. With `TF_CPP_MIN_LOG_LEVEL=0` in the
environment they appear, for example to see why TensorFlow does not start on a processor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

__all__ = ["keras", "tf"]


@contextmanager
def _hold_back_stderr() -> Iterator[None]:
    """Send what is written to file descriptor 2 to a temporary file, and print it if an exception is raised."""
    original = os.dup(2)
    with TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(original, 2)
            file.seek(0)
            os.write(2, file.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


def _has_stderr() -> bool:
    try:
        os.fstat(2)
    except OSError:
        return False
    return True


if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0" or not _has_stderr():
    import keras
    import tensorflow as tf
else:
    with _hold_back_stderr():
        import keras
        import tensorflow as tf

        # Without a driver, in Linux or in WSL, TensorFlow reports an error when it first looks for a GPU: let it look
        # now. With one it must not, since worker processes fork after this import, and CUDA does not survive a fork.
        if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg")):
            tf.config.list_physical_devices()
