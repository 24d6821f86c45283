"""The models that ship with the package, as data: what they take, where they come from, how good they are.

Pages, model cards and tests read this table; ``python -m train bundle`` says what has to change here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BUNDLED_DIR = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Model:
    """One bundled model."""

    name: str
    """Of its file and card; what ``HardNet8(pretrained=NAME)`` takes, where it is a descriptor."""
    use: str
    """What it is for."""
    arch: str
    patch_size: int
    """Side of the gray patches that go in, pixels."""
    dims: int
    """Most numbers that come out; of descriptors any smaller width by ``output_dim``."""
    mr_sizes: tuple[float, ...]
    """Half side of a patch / sigma of the detection that the model was trained for, for each of the patches."""
    code_licence: str
    weights_licence: str
    """What the weights may be used for."""
    source: str
    """How they came about."""
    sha256: str
    numbers: Mapping[str, float]
    """Scores of ``python -m eval dev`` in int8 (see the card), fractions; of a choice of keypoints: with h8E512."""

    @property
    def path(self) -> Path:
        """The weight file."""
        return BUNDLED_DIR / f"{self.name}.safetensors"

    @property
    def card(self) -> Path:
        """The model card beside it: data, training, numbers, licence."""
        return BUNDLED_DIR / f"{self.name}.md"


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            name="h8E512",
            use="descriptor",
            arch="h8E512",
            patch_size=32,
            dims=512,
            mr_sizes=(12.0,),
            code_licence="Apache-2.0",
            weights_licence="research use",
            source="trained by `python -m train` on COLMAP models, photographs and fixed cameras",
            sha256="15b61550b35c0d16ab2a8801b3988bd7a51a0b186285544eeebc618194ffeaa4",
            numbers={
                "poses/mAA@10": 0.524,
                "poses/AP": 0.102,
                "homographies/MMA@3": 0.469,
                "homographies/correct_nn": 0.504,
                "fixed_camera/mAP": 0.591,
            },
        ),
        Model(
            name="h8small",
            use="descriptor",
            arch="h8small",
            patch_size=32,
            dims=128,
            mr_sizes=(12.0,),
            code_licence="Apache-2.0",
            weights_licence="research use",
            source="taught by h8E512 (`python -m train --loss distill`) on the same photographs",
            sha256="60e00bc9b3e0cabb6a98d853ea0a1f0ef722ae389f30d428cf01a11f0fd242c0",
            numbers={
                "poses/mAA@10": 0.524,
                "poses/AP": 0.101,
                "homographies/MMA@3": 0.469,
                "homographies/correct_nn": 0.502,
                "fixed_camera/mAP": 0.578,
            },
        ),
        Model(
            name="matchability",
            use="choice of keypoints",
            arch="matchability",
            patch_size=16,
            dims=1,
            mr_sizes=(12.0, 4.0),
            code_licence="Apache-2.0",
            weights_licence="research use",
            source="trained by `python -m train matchability` on COLMAP models",
            sha256="413b765f435d397493681405986bf95d8417a5fb0cbf79167f285be7c5304b08",
            numbers={
                "poses/mAA@10": 0.535,
                "poses/AP": 0.124,
                "homographies/MMA@3": 0.448,
                "homographies/correct_nn": 0.544,
                "fixed_camera/mAP": 0.580,
            },
        ),
    )
}
