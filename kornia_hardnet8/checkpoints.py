"""Weight files in and out, without ever running code that a file brings along."""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kornia_hardnet8.arch import ARCHS, Arch, empty_features, get_arch
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError, closest
from kornia_hardnet8.files import atomic_path, sha256_file, write_bytes
from kornia_hardnet8.models import BUNDLED_DIR, MODELS
from kornia_hardnet8.projection import Projection
from kornia_hardnet8.torch_files import projection_of_pca, read_torch_file, state_dict_of

FORMAT = "kornia-hardnet8/1"
CHECKPOINT_FORMAT = "kornia-hardnet8/checkpoint/1"
_DIGEST = "sha256"  # metadata of a .safetensors: of all the rest
# The network beside them that chooses keypoints.
MATCHABILITY = "matchability"


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
    """Names of the descriptors that ship with the package."""
    return sorted(path.stem for path in BUNDLED_DIR.glob("*.safetensors") if path.stem != MATCHABILITY)


def load_weights(source: str | Path) -> Weights:
    """Read a bundled model by its name, or a weight file of any known format by its path.

    Known: this package's ``.safetensors`` and training checkpoints; bare state dicts and ``{"state_dict": …}``
    dictionaries with keys ``features.*`` (kornia, HardNet of 2017); the ``.pt`` of 2020 with or without its PCA;
    TorchScript archives (``.jitpt``), whose code is not run.

    Raises:
        UsageError: an unknown name that is no path either (close names given), or the folder of a run.
        MissingFileError: no such file.
        DataError: a file that is damaged, of another format, or of shapes that fit no architecture.
    """
    if str(source) in bundled_names():
        return _read_safetensors(BUNDLED_DIR / f"{source}.safetensors")
    path = Path(source)
    if path.is_file():
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if (path / "last.ckpt").is_file():
        raise UsageError(f"{path} is the folder of a run: its weights are {path / 'last.ckpt'}")
    if path.suffix or len(path.parts) > 1:
        raise MissingFileError(f"no weight file at {path}")
    known = bundled_names()
    raise UsageError(
        f"no bundled model {str(source)!r} (there are: {', '.join(known) or 'none'}){closest(str(source), known)}"
    )


def save_weights(path: str | Path, weights: Weights, dtype: torch.dtype = torch.float16) -> None:
    """Write a ``.safetensors`` file: convolutions and components in ``dtype``, statistics in float32.

    Raises:
        DataError: the file cannot be written (a full disk); nothing is left behind.
    """
    tensors = {
        f"features.{key}": (value.to(dtype) if key.endswith("weight") else value).contiguous()
        for key, value in weights.features.items()
    }
    if weights.projection is not None:
        tensors["projection.components"] = weights.projection.components.to(dtype).contiguous()
        tensors["projection.mean"] = weights.projection.mean.float()
        tensors["projection.eigenvalues"] = weights.projection.eigenvalues.float()
    write_safetensors(path, tensors, {**weights.metadata, "format": FORMAT, "arch": weights.arch})


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write contiguous tensors and JSON values; the same of both give the same file.

    Raises:
        DataError: the file cannot be written; nothing is left behind.
    """
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    text[_DIGEST] = _digest(tensors, text)
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=text)
        except SafetensorError as error:
            raise DataError(f"cannot write {path}: {error}") from None
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Rewrite the header of a safetensors file in place, its metadata in the order of their names.

    safetensors writes them in random order: the same weights would be another file each time.
    """
    with open(path, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        # The order of tensors is kept: it is that of their places in the file.
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise DataError(f"cannot sort the header of {path.name}: {len(text)} bytes, {length} are there")
        file.seek(8)
        file.write(text.ljust(length))


def _digest(tensors: dict[str, Tensor], text: dict[str, str]) -> str:
    """SHA-256 (hex) over the names, types, shapes and bytes of tensors, and over metadata but for the digest itself."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in sorted(text.items()) if k != _DIGEST}).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_kornia(path: str | Path, weights: Weights) -> None:
    """Write what kornia's modules load with ``strict=True``.

    ``h8E512`` becomes the bare state dict of ``kornia.feature.HardNet8``, with the first 128 axes of the projection;
    ``h7`` without projection the ``{"state_dict": …}`` of ``kornia.feature.HardNet``.

    Raises:
        UsageError: kornia has no module for these weights.
        DataError: the file cannot be written; nothing is left behind.
    """
    state: dict[str, Any] = {f"features.{key}": value.float().clone() if value.is_floating_point() else value.clone()
                             for key, value in weights.features.items()}  # fmt: skip
    if weights.arch == "h8E512" and weights.projection is not None and weights.projection.components.shape[1] >= 128:
        mean, components = weights.projection.truncated(128)
        content = {"components": components.float().contiguous().clone(), "mean": mean.float().clone(), **state}
    elif weights.arch == "h7" and weights.projection is None:
        content = {"state_dict": state}
    else:
        has = "no projection" if weights.projection is None else "a projection"
        raise UsageError(
            f"kornia has no module for {weights.arch} with {has}: it has HardNet8 (h8E512 with a projection of at "
            "least 128 dimensions) and HardNet (h7 without one)"
        )
    buffer = (
        io.BytesIO()
    )  # torch names the archive after the file that it writes, and a temporary one has a random name
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def read_safetensors(path: Path, format: str, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON values of a file that says it is of a ``format``.

    Its content is compared with the digest in it; the file with ``sha256`` (hex) where it holds none.

    Raises:
        DataError: a damaged file, or one of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}") from None
    if text.get("format") != format:
        raise DataError(f"{path} is not a {format} file (format: {text.get('format')})")
    digest = text.pop(_DIGEST, None)
    stated, got = (sha256, sha256 and sha256_file(path)) if digest is None else (digest, _digest(tensors, text))
    if got != stated:
        raise DataError(f"{path} is damaged: its content does not fit its digest; fetch the file again")
    return tensors, {key: _json_or_text(value) for key, value in text.items() if key != "format"}


def _read_safetensors(path: Path) -> Weights:
    stated = next((model.sha256 for model in MODELS.values() if model.path == path), None)
    tensors, metadata = read_safetensors(path, FORMAT, stated)
    arch = metadata.pop("arch", None)
    features = {key.removeprefix("features."): v for key, v in tensors.items() if key.startswith("features.")}
    projection = {key.removeprefix("projection."): v for key, v in tensors.items() if key.startswith("projection.")}
    return _checked(path, arch, features, projection or None, metadata)


def _read_torch(path: Path) -> Weights:
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, expected a dictionary of tensors")
    if content.get("format") == CHECKPOINT_FORMAT:
        features, metadata = content.get("features"), content.get("metadata", {})
        if not isinstance(features, dict) or not isinstance(metadata, dict):
            raise DataError(f"{path} lacks its features: it is no complete {CHECKPOINT_FORMAT}")
        return _checked(path, content.get("arch"), features, content.get("projection"), metadata)
    state = {str(key): value for key, value in state_dict_of(content).items()}
    features = {key.removeprefix("features."): v for key, v in state.items() if key.startswith("features.")}
    if not features:
        raise DataError(f"{path} holds no features.* weights: not a HardNet of any known format")
    arch = content.get("model_arch")
    if isinstance(arch, str):
        arch = arch.partition("pca")[0]
    projection: Any = None
    if "pca" in content:
        try:
            projection = vars(projection_of_pca(content["pca"]))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    elif "mean" in state:
        projection = _projection_beside(path, state)
    return _checked(path, arch if arch is not None else _guess_arch(features), features, projection, {})


def _projection_beside(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The projection of a state dict: kornia's ``components`` (D, K), or a linear layer's weight (K, D)."""
    components = state.get("components")
    if components is None:
        linear = [v for k, v in state.items() if not k.startswith("features.") and k.endswith(".weight")]
        if len(linear) != 1 or not isinstance(linear[0], Tensor) or linear[0].dim() != 2:
            raise DataError(f"{path} holds a mean but no components")
        components = linear[0].T
    if not isinstance(components, Tensor) or components.dim() != 2 or components.shape[1] > components.shape[0]:
        raise DataError(f"{path}: components must be a matrix of no more columns than rows")
    return {
        "mean": state["mean"],
        "components": components,
        "eigenvalues": torch.full((components.shape[1],), math.nan),
    }


def _checked(path: Path, arch: Any, features: dict[str, Any], projection: Any, metadata: dict[str, Any]) -> Weights:
    """Refuse weights whose keys, shapes or values are not those of their architecture."""
    if arch is None:
        raise DataError(f"{path} fits no known architecture ({', '.join(ARCHS)})")
    try:
        spec = get_arch(str(arch))
    except UsageError as error:
        raise DataError(f"{path}: {error}") from None
    expected = empty_features(spec.name).state_dict()
    features = dict(features)
    for key in expected:
        if key.endswith("num_batches_tracked"):
            features.setdefault(key, torch.tensor(0))  # files of 2017 lack it
    wrong = sorted(set(expected) ^ set(features))
    if wrong:
        raise DataError(
            f"{path} is not {spec.name}: features.{wrong[0]} is {'missing' if wrong[0] in expected else 'extra'}"
        )
    for key, value in features.items():
        if not isinstance(value, Tensor) or value.shape != expected[key].shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise DataError(
                f"{path} is not {spec.name}: features.{key} is {shape}, expected {tuple(expected[key].shape)}"
            )
    return Weights(
        spec.name,
        {key: _plain(path, f"features.{key}", features[key]) for key in expected},
        None if projection is None else _checked_projection(path, spec, projection),
        metadata,
    )


def _checked_projection(path: Path, spec: Arch, parts: Any) -> Projection:
    for name, dims in (("mean", 1), ("components", 2), ("eigenvalues", 1)):
        if not isinstance(parts, dict) or not isinstance(parts.get(name), Tensor):
            raise DataError(f"{path}: its projection lacks {name}")
        if parts[name].is_nested or parts[name].dim() != dims:
            raise DataError(f"{path}: {name} of its projection is no array of {dims} dimension(s)")
    mean, components = parts["mean"], parts["components"]
    if len(mean) != spec.dim:
        raise DataError(f"{path}: the projection is for {len(mean)} dimensions, {spec.name} has {spec.dim}")
    if len(components) != spec.dim or components.shape[1] > spec.dim or len(parts["eigenvalues"]) > spec.dim:
        shapes = f"mean {tuple(mean.shape)} and components {tuple(components.shape)}"
        raise DataError(f"{path}: {shapes} of its projection do not fit {spec.name}")
    try:
        return Projection(
            _plain(path, "projection.mean", parts["mean"]),
            _plain(path, "projection.components", parts["components"]),
            _numbers(path, "projection.eigenvalues", parts["eigenvalues"]).float(),
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _numbers(path: Path, name: str, value: Tensor) -> Tensor:
    """A dense tensor of real numbers; refused otherwise."""
    if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.is_meta or value.is_nested:
        raise DataError(f"{path}: {name} is no plain tensor of numbers")
    return value.detach()


def _plain(path: Path, name: str, value: Tensor) -> Tensor:
    """A dense, contiguous, finite tensor of its own: float32, or int64 for counts."""
    value = _numbers(path, name, value)
    if not value.is_floating_point():
        return value.to(torch.int64).clone()
    value = value.detach().float().contiguous()
    # NaN is passed on to the ends; a twentieth of the time of isfinite
    if value.numel() and not all(torch.isfinite(end) for end in value.aminmax()):
        raise DataError(f"{path}: {name} holds NaN or infinity")
    return value


def _guess_arch(features: dict[str, Any]) -> str | None:
    """The first architecture whose convolutions have just these shapes."""
    shapes = {key: tuple(v.shape) for key, v in features.items() if key.endswith("weight") and isinstance(v, Tensor)}
    for name in sorted(ARCHS, key=lambda n: n not in ("h7", "h8", "h8E512")):
        expected = empty_features(name).state_dict()
        if shapes == {key: tuple(value.shape) for key, value in expected.items() if key.endswith("weight")}:
            return name
    return None


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # plain text, or numbers and nesting beyond any use
        return text
