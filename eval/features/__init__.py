"""Descriptors and whole local features behind tokens: ``load("h8E512@run/best.ckpt:dim=512")``."""

from eval.features.base import Descriptor, Method, WholeFeature
from eval.features.keypoints import Keypoints
from eval.features.registry import load, load_method, tokens_help
from eval.features.tokens import Token, parse_token

__all__ = [
    "Descriptor",
    "Keypoints",
    "Method",
    "Token",
    "WholeFeature",
    "load",
    "load_method",
    "parse_token",
    "tokens_help",
]
