"""Experiments, one per file; see common.py."""
