"""A weekly retraining line for an image classifier: ingest, check, train, judge, publish, prove, promote."""

__version__ = "0.1.0"
