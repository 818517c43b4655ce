"""What happens to runs when parts of a cluster fail; a package, so that all tests of a process share a cluster."""
