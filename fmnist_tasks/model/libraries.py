"""TensorFlow and Keras, imported without TensorFlow's start-up messages.

TensorFlow writes them to file descriptor 2 during the import, at every log level. With `TF_CPP_MIN_LOG_LEVEL=0` in the
environment they appear, for example to see why TensorFlow does not start on a processor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["keras", "tf"]


@contextmanager
def _discard_stderr() -> Iterator[None]:
    """Send what is written to file descriptor 2 to the null device."""
    sys.stderr.flush()
    original = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)


if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0":
    import keras
    import tensorflow as tf
else:
    with _discard_stderr():
        import keras
        import tensorflow as tf

        # Without a driver, in Linux or in WSL, TensorFlow reports an error when it first looks for a GPU: let it look
        # now. With one it must not, since worker processes fork after this import, and CUDA does not survive a fork.
        if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg")):
            tf.config.list_physical_devices()
