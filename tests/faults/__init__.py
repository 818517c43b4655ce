"""What happens to runs when parts of a cluster fail; a package, so that all drills of a process share a cluster."""
