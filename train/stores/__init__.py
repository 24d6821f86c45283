"""Patch stores: the format at rest, and one builder for each kind of source."""
