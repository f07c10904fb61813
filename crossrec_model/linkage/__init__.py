"""Private linkage: which users, or items, two platforms have in common, and nothing else."""
