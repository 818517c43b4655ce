"""A weekly retraining pipeline for an image classifier: ingest, check, train, evaluate, publish, verify, promote."""

__version__ = "0.2.0"
