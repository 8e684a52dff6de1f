"""What is measured of every contender: the workloads, and how each is run."""
