"""Weight files in and out, without ever running code that a file brings along."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kornia_hardnet8._files import atomic_path
from kornia_hardnet8.arch import ARCHS, build_features, get_arch
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError, closest
from kornia_hardnet8.projection import Projection

FORMAT = "kornia-hardnet8/1"
CHECKPOINT_FORMAT = "kornia-hardnet8/checkpoint/1"
BUNDLED_DIR = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Weights:
    """What a weight file holds.

    Attributes:
        arch: architecture token.
        features: state dict of the layers, keys ``0.weight``, ``1.running_mean``, ….
        projection: the PCA behind the network, or None.
        metadata: what else the file says (``mr_size``, how it was trained), JSON values.
    """

    arch: str
    features: dict[str, Tensor]
    projection: Projection | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def bundled_names() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.stem for path in BUNDLED_DIR.glob("*.safetensors"))


def load_weights(source: str | Path) -> Weights:
    """Read a bundled model by its name, or a weight file of any known format by its path.

    Known: this package's ``.safetensors``; its training checkpoints; bare state dicts and ``{"state_dict": …}``
    dictionaries with keys ``features.*`` (kornia, HardNet of 2017).

    Raises:
        UsageError: an unknown name that is no path either (close names given).
        MissingFileError: no such file.
        DataError: a file that is damaged, of another format, or of shapes that fit no architecture.
    """
    if str(source) in bundled_names():
        return _read_safetensors(BUNDLED_DIR / f"{source}.safetensors")
    path = Path(source)
    if path.is_file():
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if path.suffix or len(path.parts) > 1:
        raise MissingFileError(f"no weight file at {path}")
    known = bundled_names()
    raise UsageError(
        f"no bundled model {str(source)!r} (there are: {', '.join(known) or 'none'}){closest(str(source), known)}"
    )


def save_weights(path: str | Path, weights: Weights, dtype: torch.dtype = torch.float16) -> None:
    """Write a ``.safetensors`` file: convolutions and components in ``dtype``, statistics in float32."""
    tensors = {
        f"features.{key}": (value.to(dtype) if key.endswith("weight") else value).contiguous()
        for key, value in weights.features.items()
    }
    if weights.projection is not None:
        tensors["projection.components"] = weights.projection.components.to(dtype).contiguous()
        tensors["projection.mean"] = weights.projection.mean.float()
        tensors["projection.eigenvalues"] = weights.projection.eigenvalues.float()
    metadata = {**weights.metadata, "format": FORMAT, "arch": weights.arch}
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=text)


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            text = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}") from None
    if text.get("format") != FORMAT:
        raise DataError(f"{path} is not a {FORMAT} file (format: {text.get('format')})")
    floats = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    features = {key.removeprefix("features."): v for key, v in floats.items() if key.startswith("features.")}
    projection = None
    if "projection.components" in floats:
        try:
            projection = Projection(*(floats[f"projection.{k}"] for k in ("mean", "components", "eigenvalues")))
        except KeyError as error:
            raise DataError(f"{path} lacks {error.args[0]}") from None
    metadata = {key: _json_or_text(value) for key, value in text.items() if key not in ("format", "arch")}
    return _checked(path, text.get("arch"), features, projection, metadata)


def _read_torch(path: Path) -> Weights:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is damaged or no weight file: {reason[:200]}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors")
    if content.get("format") == CHECKPOINT_FORMAT:
        projection = content.get("projection")
        return _checked(
            path,
            content.get("arch"),
            content.get("features", {}),
            None if projection is None else Projection(**projection),
            content.get("metadata", {}),
        )
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not any(str(key).startswith("features.") for key in state):
        raise DataError(f"{path} holds no features.* weights: not a HardNet of any known format")
    features = {key.removeprefix("features."): v for key, v in state.items() if key.startswith("features.")}
    projection = None
    if "components" in state and "mean" in state:
        width = state["components"].shape[1]
        projection = Projection(state["mean"], state["components"], torch.full((width,), math.nan))
    return _checked(path, _guess_arch(features), features, projection, {})


def _checked(
    path: Path, arch: str | None, features: dict[str, Tensor], projection: Projection | None, metadata: dict[str, Any]
) -> Weights:
    """Refuse weights whose keys or shapes are not those of their architecture."""
    if arch is None:
        raise DataError(f"{path} fits no known architecture ({', '.join(ARCHS)})")
    expected = build_features(arch).state_dict()
    features = dict(features)
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            features.setdefault(key, value)  # files of 2017 lack it
    wrong = sorted(set(expected) ^ set(features))
    if wrong:
        raise DataError(
            f"{path} is not {arch}: features.{wrong[0]} is {'missing' if wrong[0] in expected else 'extra'}"
        )
    for key, value in features.items():
        if value.shape != expected[key].shape:
            raise DataError(
                f"{path} is not {arch}: features.{key} is {tuple(value.shape)}, expected {tuple(expected[key].shape)}"
            )
    if projection is not None and projection.mean.shape[0] != get_arch(arch).dim:
        raise DataError(f"{path}: the projection is for {projection.mean.shape[0]} dimensions, {arch} has others")
    return Weights(arch, features, projection, metadata)


def _guess_arch(features: dict[str, Tensor]) -> str | None:
    """The first architecture whose convolutions have just these shapes."""
    shapes = {key: tuple(value.shape) for key, value in features.items() if key.endswith("weight")}
    for name in sorted(ARCHS, key=lambda n: n not in ("h7", "h8", "h8E512")):
        with torch.device("meta"):
            expected = build_features(name).state_dict()
        if shapes == {key: tuple(value.shape) for key, value in expected.items() if key.endswith("weight")}:
            return name
    return None


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
