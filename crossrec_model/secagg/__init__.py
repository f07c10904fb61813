"""Secure aggregation: the coordinator learns the sum of the platforms' vectors, and nothing else."""
