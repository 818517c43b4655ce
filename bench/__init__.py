"""Benchmarks: `make bench`, `make bench-training` and `make bench-cluster`."""
