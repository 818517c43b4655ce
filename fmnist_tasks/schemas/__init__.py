"""Typed models of the stored documents: records of runs, manifests of releases, log entries and batches."""
