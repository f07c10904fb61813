"""The coordinator of the federation: rounds, optimiser and checkpoints."""
