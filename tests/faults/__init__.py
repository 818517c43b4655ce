"""Fault-injection tests on a cluster. They are a package, so that all tests of a process can share a cluster."""
