"""Measures, protocols, baselines and the report."""
