"""The scene that the benches of the evaluations are tried on."""

from tests.eval.imw.conftest import corner, corner_scene

__all__ = ["corner", "corner_scene"]
