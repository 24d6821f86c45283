"""Values computed elsewhere (``tests/vectors/vectors_training.json``), and networks filled by their rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training_vectors import decode, load_vectors


def fill(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The rule ``fill_v1`` of the vector file."""
    generator = np.random.RandomState(seed)
    filled = {}
    for key, value in state.items():
        if not value.is_floating_point():
            filled[key] = value.clone()
            continue
        shape = tuple(value.shape)
        if key.endswith("running_var"):
            array = generator.uniform(0.5, 1.5, shape)
        elif key.endswith("running_mean") or key == "mean":
            array = 0.1 * generator.standard_normal(shape)
        else:
            array = generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else shape[0])
        filled[key] = torch.from_numpy(np.asarray(array, dtype=np.float32))
    return filled


def fill_module(module: nn.Module, seed: int) -> nn.Module:
    module.load_state_dict(fill(module.state_dict(), seed), strict=True)
    return module


@pytest.fixture(scope="session")
def vectors() -> dict[str, dict[str, Any]]:
    return load_vectors()


@pytest.fixture(scope="session")
def patches(vectors: dict[str, dict[str, Any]]) -> Tensor:
    """The 4 patches of the vector file, float in 0 … 255; the last one is constant."""
    return decode(vectors["architectures.forward_h7"]["inputs"]["patches"]).float()
