"""Descriptors behind tokens: ``load("h8E512@run/best.ckpt:dim=512")``."""

from eval.features.base import Descriptor
from eval.features.keypoints import Keypoints
from eval.features.registry import known_names, load
from eval.features.tokens import Token, parse_token

__all__ = ["Descriptor", "Keypoints", "Token", "known_names", "load", "parse_token"]
