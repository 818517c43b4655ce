"""The object store and what is in it: blobs, records of runs, checkpoints, releases and the champion log."""
