"""Which test reproduces which cases of ``tests/vectors/vectors_training.json``.

``test_vectors.py`` fails when a case stands in no table or in two, or when the file named for it does not speak of it.
"""

from __future__ import annotations

from pathlib import Path

from tests.training_vectors import load_vectors

ROOT = Path(__file__).resolve().parents[2]


def case_names() -> list[str]:
    """All cases, in the order of the file."""
    return list(load_vectors())


# prefix of a case -> the test file that reproduces it; the longest prefix counts
REPRODUCED: dict[str, str] = {
    "architectures.": "tests/kornia_hardnet8/test_arch.py",
    "architectures.forward_h7pca32": "tests/kornia_hardnet8/test_projection.py",
    "kornia_hardnet8.": "tests/kornia_hardnet8/test_hardnet8.py",
    "input_norm.": "tests/kornia_hardnet8/test_hardnet8.py",
    "pca.": "tests/kornia_hardnet8/test_projection.py",
    "amos.": "tests/train/stores/test_amos.py",
    "colmap.": "tests/train/stores/test_colmap.py",
    "losses.": "tests/train/test_losses.py",
    "one_cycle.": "tests/train/test_optim.py",
    "fastai_adamw.": "tests/train/test_optim.py",
    "hardnet2017_sgd": "tests/train/test_optim.py",
    "train_step.": "tests/train/test_vectors.py",
    "augmentation.": "tests/train/test_augment.py",
    "sampling.": "tests/train/test_vectors.py",
    "fpr95.": "tests/train/test_vectors.py",
    "naming.": "tests/train/recipes2020/test_flags.py",
}

# case that states a property -> the test of it
PROPERTIES: dict[str, tuple[str, str]] = {
    "architectures.init_h8": ("tests/kornia_hardnet8/test_arch.py", "def test_initialisation_is_orthogonal_with_gain"),
}

_DRAWS = "draws of another generator; what is drawn, and how often, is tested in test_sampling.py"
# case -> why we deliberately do something else
NOT_REPRODUCED: dict[str, str] = {
    "input_norm.three_channels": "networks here take gray patches alone",
    "losses.AP": "it had no gradient and was never called",
    "losses.AP_diff": "it was never called",
    "losses.distance_pairwise_bug": "a slip in a function that was never called",
    "sampling.uniform_npos2": _DRAWS,
    "sampling.uniform_npos3": f"{_DRAWS}; labels with fewer patches repeat some, so that tuples are equally long",
    "sampling.uniform_too_large": "the original fails; ours takes all labels there are",
    "sampling.fewcams_npos2": _DRAWS,
    "sampling.fewcams_npos2_seed3": _DRAWS,
    "sampling.fewcams_too_large": "the original fails; ours takes all labels there are",
    "sampling.fewcams_dups": "an abandoned variant that gives no batch here",
    "sampling.amos_new": _DRAWS,
    "sampling.amos_new_wrap": "the original starts over and repeats labels, which then are negatives of themselves; "
    "ours ends the batch when all views have been visited",
    "sampling.amos_old": "the older sampling is left out",
    "sampling.amos_old_pairs": "the older sampling is left out",
    "augmentation.resized_crop_params": "windows are drawn continuously and by another generator; their ranges are "
    "those of the published preset",
    "amos.byte_round_trip": "no round trip through floating point happens",
    "amos.rotation_and_up": "the original turns every rotation into the identity; frames are upright here by design",
}
