"""The table of models says what the files are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from kornia.io import ImageLoadType, load_image

import kornia_hardnet8.checkpoints
import kornia_hardnet8.models
from kornia_hardnet8 import HardNet8, HardNet8Feature, example_pair
from kornia_hardnet8.checkpoints import bundled_names, load_weights
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.files import sha256_file
from kornia_hardnet8.matchability import BUNDLED, MR_SIZES, PATCH_SIZE, Matchability
from kornia_hardnet8.models import BUNDLED_DIR, MODELS, Model
from kornia_hardnet8.patches import extract_patches

ROOT = Path(__file__).resolve().parents[2]


# Of the patches of test_descriptors_stay_what_they_are, the first eight numbers.
DESCRIBED = {
    "h8E512": [
        [0.18184, -0.59409, 0.74057, -0.01130, 0.16028, -0.18767, -0.01581, -0.06526],
        [-0.06704, -0.30954, -0.13177, -0.27010, 0.65201, -0.55779, 0.26352, -0.06065],
        [-0.24589, -0.09230, 0.92884, -0.04911, 0.15516, -0.04062, 0.18999, -0.06355],
    ],
    "h8small": [
        [0.15429, -0.62012, 0.71051, -0.07966, 0.13352, -0.24044, -0.01822, -0.06713],
        [-0.09201, -0.39011, -0.20721, -0.22546, 0.61193, -0.53443, 0.28599, -0.06088],
        [-0.20259, -0.19131, 0.90148, -0.06158, 0.18949, -0.08778, 0.22434, -0.10930],
    ],
}
DESCRIPTORS = [model for model in MODELS.values() if model.use == "descriptor"]


def test_every_bundled_model_is_in_the_table() -> None:
    assert sorted(MODELS) == sorted(path.stem for path in BUNDLED_DIR.glob("*.safetensors"))
    assert [model.name for model in DESCRIPTORS] == bundled_names()
    assert all(name == model.name for name, model in MODELS.items())


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_file_is_the_one_that_the_table_names(model: Model) -> None:
    assert sha256_file(model.path) == model.sha256


@pytest.mark.parametrize("model", DESCRIPTORS, ids=lambda model: model.name)
def test_a_descriptor_is_what_the_table_says(model: Model) -> None:
    weights = load_weights(model.name)
    assert (weights.arch, (weights.metadata["mr_size"],)) == (model.arch, model.mr_sizes)
    assert weights.projection is not None
    assert weights.projection.components.shape[1] == model.dims
    network = HardNet8(model.name, output_dim=model.dims)
    assert network(torch.rand(1, 1, model.patch_size, model.patch_size)).shape == (1, model.dims)


@pytest.mark.parametrize("model", DESCRIPTORS, ids=lambda model: model.name)
def test_descriptors_stay_what_they_are(model: Model) -> None:
    y, x = torch.meshgrid(*[torch.arange(32, dtype=torch.float64)] * 2, indexing="ij")
    steep, bent, slow = 0.37 * x + 0.11 * y, 0.006 * x * y, 0.6 * x - 0.4 * y
    patches = torch.stack([steep.sin(), bent.sin() * (0.21 * y).cos(), slow.cos()])[:, None].float()
    described = HardNet8(model.name, output_dim=8)(patches)
    torch.testing.assert_close(described, torch.tensor(DESCRIBED[model.name]), rtol=0, atol=1e-4)


def test_the_small_network_can_be_matched_with_its_teacher() -> None:
    picture = load_image(example_pair()[0], ImageLoadType.GRAY32)
    lafs, _, descs = HardNet8Feature(300)(picture[None])
    small = HardNet8("h8small")(extract_patches(picture[0], lafs[0]))
    likeness = descs[0] @ small.T
    assert likeness.diagonal().mean() > 0.975
    assert (likeness.argmax(dim=1) == torch.arange(300)).float().mean() > 0.98


def test_the_choice_of_keypoints_is_what_the_table_says() -> None:
    model = MODELS["matchability"]
    assert (model.path, model.patch_size, model.mr_sizes) == (BUNDLED, PATCH_SIZE, MR_SIZES)
    patches = torch.rand(3, len(model.mr_sizes), model.patch_size, model.patch_size)
    assert Matchability(pretrained=True)(patches, torch.ones(3)).shape == (3,)


@pytest.mark.parametrize("place", [100, 9_000_000, -1])
def test_a_flipped_bit_of_a_bundled_file_is_seen(place: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = bytearray(MODELS["h8E512"].path.read_bytes())
    content[place] ^= 1
    (tmp_path / "h8E512.safetensors").write_bytes(content)
    for module in (kornia_hardnet8.checkpoints, kornia_hardnet8.models):
        monkeypatch.setattr(module, "BUNDLED_DIR", tmp_path)
    with pytest.raises(DataError, match=r"h8E512\.safetensors is damaged"):
        HardNet8(pretrained=True)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_card_says_the_same(model: Model) -> None:
    card = model.card.read_text(encoding="utf-8")
    assert re.findall(r"SHA-256 `(\w+)`", card) == [model.sha256]
    assert model.arch in card and f"`mr_size` {' and '.join(f'**{size:g}**' for size in model.mr_sizes)}" in card
    for name, value in model.numbers.items():
        assert re.search(rf"\b{value:.3f}\b", card), f"the card lacks {name} {value:.3f}"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "LICENSE-WEIGHTS",
        "docs/package-index.md",
        *(f"kornia_hardnet8/weights/{name}.md" for name in MODELS),
    ],
)
def test_the_licence_of_the_weights_is_said_alike(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").replace("*", "").split())
    assert "for research" in text and "Apache" in text
    assert {model.weights_licence for model in MODELS.values()} == {"research use"}
