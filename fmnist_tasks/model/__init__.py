"""The network: its shape, its training and fine-tuning, what it holds for no clothing, and its `.h5` file."""

import os

# Read once, when TensorFlow is imported: hide its start-up chatter, not its errors.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
