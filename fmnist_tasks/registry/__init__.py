"""Where bytes live: the object store, content-addressed blobs, run records, releases and the champion log."""
