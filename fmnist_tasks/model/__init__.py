"""The network: architecture, training, fine-tuning, out-of-distribution (OOD) detection, and its `.h5` file."""

import os

# TensorFlow and Keras read them on import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
