"""Judging descriptors: ``python -m eval``."""
