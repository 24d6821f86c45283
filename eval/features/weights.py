"""Reading other people's files of weights."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kornia_hardnet8.errors import DataError


def read_weights(path: Path) -> Mapping[str, Any]:
    """Read a torch file without running code in it.

    Raises:
        DataError: truncated, not a torch file, or not a mapping.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise DataError(f"{path} is not a readable file of weights: {reason or type(error).__name__}") from None
    if not isinstance(content, Mapping):
        raise DataError(f"{path} holds a {type(content).__name__}, expected a state dict")
    return content


def load_strictly(module: nn.Module, state: Mapping[str, Any], path: Path, network: str) -> None:
    """Load a state dict; names and shapes must be those of ``module``."""
    try:
        module.load_state_dict(dict(state), strict=True)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} does not hold the weights of {network}: {reason}") from None
