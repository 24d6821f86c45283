"""Entry points of ``torch.hub``: ``torch.hub.load(FOLDER, "hardnet8", source="local")`` works without a network."""

from __future__ import annotations

from typing import Any

dependencies = ["torch", "kornia", "safetensors"]


def hardnet8(pretrained: bool | str = True, output_dim: int | None = 128, **settings: Any) -> Any:
    """The patch descriptor: (B, 1, 32, 32) to (B, output_dim); settings as of ``kornia_hardnet8.HardNet8``."""
    from kornia_hardnet8 import HardNet8

    return HardNet8(pretrained, output_dim=output_dim, **settings)


def hardnet8_feature(num_features: int = 2048, **settings: Any) -> Any:
    """A whole local feature: images to frames, responses, descriptors; as ``kornia_hardnet8.HardNet8Feature``."""
    from kornia_hardnet8 import HardNet8Feature

    return HardNet8Feature(num_features, **settings)
