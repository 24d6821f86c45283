"""Every way to match two images: the benchmark's matcher, AdaLAM, LightGlue, and matches made elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kornia
import numpy as np
import torch
from torch import Tensor, nn

from eval.core.matching import MatcherSettings, deduplicate_matches, finite_rows, official_match
from eval.features.base import Method
from eval.features.extract import Features
from eval.features.imported import Imported
from eval.features.tokens import parse_token
from eval.features.weights import find_file, kornia_module, read_weights, weights_sha256
from kornia_hardnet8.errors import DataError, UsageError

# Descriptor -> kornia's name of the LightGlue that was trained on it, and the file of its weights.
LIGHTGLUE: dict[str, tuple[str, str]] = {
    "aliked-n16": ("aliked", "aliked_lightglue.pth"),
    "disk": ("disk", "disk_lightglue.pth"),
    "xfeat": ("xfeat", "xfeat-lighterglue.pt"),
    "rootsift": ("sift", "sift_lightglue.pth"),
}
_LIGHTGLUE_VERSION = "v0.1_arxiv"
# LightGlue's SIFT wants the detection sigma, which kornia takes as a sixth of the frame.
_SIFT_MR_SIZE = 6.0
_ADALAM_SEED = 0


@dataclass(frozen=True)
class AdalamSettings:
    """AdaLAM (Cavalli et al. 2020) with kornia's defaults."""

    def to_dict(self) -> dict[str, Any]:
        """What is hashed, stored and shown."""
        return {"matcher": "adalam", "kornia": kornia.__version__, "seed": _ADALAM_SEED}


@dataclass(frozen=True)
class LightGlueSettings:
    """LightGlue (Lindenberger et al. 2023): for every method the file of weights trained on its descriptors."""

    weights: tuple[tuple[str, Path], ...]

    def to_dict(self) -> dict[str, Any]:
        """What is hashed, stored and shown."""
        files = {method: weights_sha256(path) for method, path in self.weights}
        return {"matcher": "lightglue", "kornia": kornia.__version__, "weights_sha256": files}


@dataclass(frozen=True)
class ImportedSettings:
    """Matches of a task out of the files of ``imw-import`` that the methods name."""

    task: str

    def to_dict(self) -> dict[str, Any]:
        """What is hashed, stored and shown; the file's hash is in the key of the features."""
        return {"matcher": "imported", "task": self.task}


Matcher = MatcherSettings | AdalamSettings | LightGlueSettings | ImportedSettings


def gains_from_threads(matcher: Matcher) -> bool:
    """Whether threads of one process match pairs as fast as processes: the others are networks, or draw numbers."""
    return isinstance(matcher, MatcherSettings)


def match_images(one: Features, two: Features, matcher: Matcher) -> Tensor:
    """Matches (M, 2) int64 of two images, sorted by coordinates, no two with the same four coordinates.

    Matches made elsewhere come as they were handed in.

    Raises:
        UsageError: LightGlue for descriptors that it was not trained on, or descriptors without columns.
        DataError: no imported matches of this pair.
    """
    if isinstance(matcher, ImportedSettings):
        imported = _imported(one.method)
        rows = imported.matches(matcher.task, one.image_sha256, two.image_sha256)
        if (rows >= [len(one.keypoints), len(two.keypoints)]).any():
            raise DataError(f"{imported.path} is damaged: a match names a keypoint that is not there")
        return torch.from_numpy(rows)
    if one.descs.shape[1] == 0:
        raise UsageError(f"{one.method} has no descriptors: --matcher imported takes the matches that came with it")
    kpts = [torch.from_numpy(image.keypoints.xy) for image in (one, two)]
    if isinstance(matcher, MatcherSettings):
        return official_match(one.descs, two.descs, kpts[0], kpts[1], matcher)
    match = _adalam if isinstance(matcher, AdalamSettings) else functools.partial(_lightglue, matcher)
    (descs0, rows0), (descs1, rows1) = (finite_rows(image.descs) for image in (one, two))
    if min(len(rows0), len(rows1)) < 2:
        return torch.zeros(0, 2, dtype=torch.long)
    kept = match(
        one._replace(descs=descs0, keypoints=one.keypoints[rows0.cpu().numpy()]),
        two._replace(descs=descs1, keypoints=two.keypoints[rows1.cpu().numpy()]),
    )
    matches = torch.stack([rows0[kept[:, 0]], rows1[kept[:, 1]]], dim=1)
    return deduplicate_matches(matches, kpts[0], kpts[1])


def lightglue_settings(methods: Sequence[Method]) -> LightGlueSettings:
    """LightGlue for some methods: refused where no weights were trained on a method's descriptors.

    Raises:
        UsageError: such a method.
        MissingFileError: the weights are not there, with every place that was looked at.
    """
    files = []
    for method in methods:
        name = method.token.name
        if name not in LIGHTGLUE:
            raise UsageError(
                f"LightGlue was not trained on the descriptors of {method.name}: it knows {', '.join(LIGHTGLUE)}"
            )
        feature, file = LIGHTGLUE[name]
        cached = file if feature == "xfeat" else f"{feature}_lightglue_{_LIGHTGLUE_VERSION}.pth".replace(".", "-")
        files.append((method.name, find_file(f"LightGlue for {method.name}", "", None, file, cached)))
    return LightGlueSettings(tuple(files))


def check_imported(methods: Sequence[Method], task: str) -> ImportedSettings:
    """Imported matches for some methods: refused where a method has none of the task.

    Raises:
        UsageError: such a method.
    """
    for method in methods:
        if not isinstance(method, Imported) or task not in method.match_tasks:
            raise UsageError(f"{method.name} brings no {task} matches: --matcher imported goes with imported@FILE.h5")
    return ImportedSettings(task)


def _adalam(one: Features, two: Features) -> Tensor:
    """Neighbours that agree with those around them; its draws are seeded."""
    import kornia.feature as KF

    lafs0, lafs1 = (image.keypoints.lafs(_SIFT_MR_SIZE)[None].to(image.descs) for image in (one, two))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(_ADALAM_SEED)
        _, matches = KF.match_adalam(one.descs, two.descs, lafs0, lafs1, hw1=one.image_shape, hw2=two.image_shape)
    return matches


@torch.inference_mode()
def _lightglue(settings: LightGlueSettings, one: Features, two: Features) -> Tensor:
    weights = dict(settings.weights).get(one.method)
    if weights is None:
        raise UsageError(f"LightGlue was not trained on the descriptors of {one.method}")
    network = _lightglue_network(LIGHTGLUE[parse_token(one.method).name][0], weights).to(one.descs.device)
    output = network({"image0": _lightglue_image(one), "image1": _lightglue_image(two)})
    matches: Tensor = output["matches"][0]
    return matches.clone()


def _lightglue_image(image: Features) -> dict[str, Tensor]:
    device = image.descs.device
    angles = np.deg2rad(image.keypoints.angle)
    columns = {
        "keypoints": image.keypoints.xy,
        "scales": image.keypoints.size / 2,
        "oris": np.arctan2(np.sin(angles), np.cos(angles)),
        "image_size": np.array(image.image_shape[::-1], np.float32),
    }
    return {"descriptors": image.descs[None]} | {
        name: torch.from_numpy(np.asarray(values, np.float32))[None].to(device) for name, values in columns.items()
    }


@functools.lru_cache(maxsize=2)
def _lightglue_network(feature: str, path: Path) -> nn.Module:
    """Kornia's LightGlue with weights of a file, without its own download."""
    network_class = kornia_module("LightGlue")
    if feature not in network_class.features:
        raise UsageError(f"kornia {kornia.__version__} has no LightGlue for {feature}: pip install 'kornia>=0.9'")
    options = {key: value for key, value in network_class.features[feature].items() if key != "weights"}
    network: nn.Module = network_class(None, **options)
    state = {}
    for key, value in read_weights(path).items():
        name = key.removeprefix("matcher.")
        for layer in range(options.get("n_layers", 9)):
            for part in ("self_attn", "cross_attn"):
                name = name.replace(f"{part}.{layer}", f"transformers.{layer}.{part}")
        state[name] = value
    try:
        missing = network.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise DataError(f"{path} does not hold LightGlue for {feature}: {' '.join(str(error).split())[:200]}") from None
    lacking = [name for name in missing if name in dict(network.named_parameters())]
    if lacking:
        raise DataError(f"{path} does not hold LightGlue for {feature}: it lacks {lacking[0]}")
    return network.eval()


@functools.lru_cache(maxsize=4)
def _imported(method: str) -> Imported:
    token = parse_token(method)
    assert token.weights is not None
    return Imported(token, token.weights)
