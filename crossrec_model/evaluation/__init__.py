"""Metrics, baselines, comparison with intervals, and the report."""
