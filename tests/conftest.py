"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# A loaded machine is no reason to fail.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
