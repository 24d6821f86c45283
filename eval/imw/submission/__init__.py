"""Submissions to the IMW benchmark: written, and checked before they are handed in."""
