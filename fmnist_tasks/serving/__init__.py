"""Use of releases: verification, predictions, rollback and withdrawal."""
