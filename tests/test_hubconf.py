"""``torch.hub`` finds the entry points in a folder, without a network."""

from __future__ import annotations

from pathlib import Path

import torch

from kornia_hardnet8 import HardNet8, HardNet8Feature

ROOT = Path(__file__).resolve().parents[1]


def test_models_load_from_a_folder() -> None:
    network = torch.hub.load(str(ROOT), "hardnet8", source="local", output_dim=64)
    assert isinstance(network, HardNet8)
    patches = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(patches), HardNet8(True, output_dim=64)(patches))
    assert isinstance(torch.hub.load(str(ROOT), "hardnet8_feature", source="local", num_features=10), HardNet8Feature)
