"""Data files of torch (``.pt``), of 2017 and 2020, read in place as if they were patch stores."""

from __future__ import annotations

import codecs
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.torch_files import load_torch

# HardNets trained on patches of keypoints are used with patches of 12 sigma to the side's half.
MR_SIZE = 12.0


def open_2020(path: Path) -> PatchStore:
    """Open a Brown-like file (``patches``, ``labels``, …) or a webcam file (``patch_sets``, …).

    Files of torch 1.6 and later stay on the disk (memory-mapped); older ones are read into memory. Colour patches stay
    colour: they are turned gray when they are drawn. A file without ``cam_ids`` has one camera for all.

    Raises:
        DataError: damaged, or of another content. Nothing that the file brings along is run.
    """
    content = _load(path)
    if isinstance(content, (tuple, list)) and len(content) in (2, 3):  # the loaders of 2017 and of torchvision
        third = "matches" if np.ndim(content[-1]) == 2 else "cam_ids"
        content = dict(zip(("patches", "labels", third), content, strict=False))
    if not isinstance(content, dict) or not ({"patches", "labels"} <= set(content) or "patch_sets" in content):
        raise DataError(f"{path} holds no patches and labels: it is no data file of the 2020 code")
    try:
        return _views(path, content) if "patch_sets" in content else _tuples(path, content)
    except DataError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:  # what conversions of odd content raise
        raise DataError(f"{path} is no data file of the 2020 code: {' '.join(str(error).split())[:200]}") from None


def _load(path: Path) -> Any:
    numpy_core = getattr(np, "_core", None) or np.core
    rebuild = numpy_core.multiarray._reconstruct
    allowed: list[Any] = [
        np.ndarray, np.dtype, (rebuild, "numpy.core.multiarray._reconstruct"),
        (rebuild, "numpy._core.multiarray._reconstruct"), (codecs.encode, "_codecs.encode"),
        *(type(np.dtype(name)) for name in ("bool", "uint8", "int32", "int64", "float32", "float64")),
    ]  # fmt: skip
    # files before torch 1.6 cannot be mapped
    return load_torch(path, allowed, check_sums=False, mapped=zipfile.is_zipfile(path))


def _tuples(path: Path, content: dict[str, Any]) -> PatchStore:
    patches, labels = _array(content["patches"]), _whole(content, "labels", path).astype(np.int64)
    if patches.dtype != np.uint8 or patches.ndim not in (3, 4) or patches.shape[1] != patches.shape[2]:
        raise DataError(f"{path}: patches must be uint8 (P, S, S) or (P, S, S, 3), got {patches.dtype} {patches.shape}")
    if labels.shape != (len(patches),):
        raise DataError(f"{path}: {len(patches)} patches but labels of shape {labels.shape}")
    ids = next((name for name in ("cam_ids", "image_ids") if content.get(name) is not None), None)
    has_cams = ids is not None
    cams = np.zeros(len(patches), np.int32) if ids is None else _whole(content, ids, path).astype(np.int32)
    if cams.shape != labels.shape:
        raise DataError(f"{path}: {len(patches)} patches but {ids} of shape {cams.shape}")
    meta = _meta(path, "tuples", patches, 1.0) | {"mr_size": MR_SIZE, "has_cams": has_cams}
    pairs = None
    if content.get("matches") is not None:
        pairs = _whole(content, "matches", path).astype(np.int64)
        if pairs.ndim != 2 or pairs.shape[1] != 3 or not _are_below(pairs[:, :2], len(patches)):
            raise DataError(f"{path}: matches must be (M, 3), each two of the {len(patches)} patches and 1 or 0")
    return PatchStore(path, meta, patches, labels, cams, cams, pairs=pairs)


def _views(path: Path, content: dict[str, Any]) -> PatchStore:
    sets, views = _array(content["patch_sets"]), _whole(content, "cam_idxs", path).astype(np.int32)
    if sets.dtype != np.uint8 or sets.ndim != 5 or sets.shape[2] != 1 or sets.shape[3] != sets.shape[4]:
        raise DataError(f"{path}: patch_sets must be gray uint8 (S, I, 1, P, P), got {sets.dtype} {sets.shape}")
    places, images = sets.shape[:2]
    if views.shape != (places,):
        raise DataError(f"{path}: {places} patch sets but cam_idxs of shape {views.shape}")
    patches = sets.reshape(places * images, *sets.shape[3:])
    labels = np.repeat(np.arange(places, dtype=np.int64), images)
    cams = np.repeat(views, images)
    image_ids = cams * images + np.tile(np.arange(images, dtype=np.int32), places)
    mask = content.get("patches_mask")
    visible = None if mask is None else _array(mask).astype(bool).reshape(-1)
    if visible is not None and len(visible) != len(patches):
        raise DataError(f"{path}: {places} patch sets of {images} images but a patches_mask of {len(visible)}")
    collisions = None
    if content.get("collisions") is not None:
        rows = [_array(row) for row in content["collisions"]]
        if any(row.ndim != 1 or (row.size and row.dtype.kind not in "iu") for row in rows):
            raise DataError(f"{path}: collisions must be lists of whole numbers")
        lists = [np.setdiff1d(row.astype(np.int64), [k]) for k, row in enumerate(rows)]
        if len(lists) != places or not all(_are_below(row, places) for row in lists):
            raise DataError(f"{path}: collisions must be {places} lists of patch sets, one for each")
        starts = np.cumsum([0, *map(len, lists)]).astype(np.int64)
        collisions = starts, np.concatenate([*lists, np.empty(0, np.int64)])
    # Places of fixed cameras are windows: no keypoint has a scale.
    meta = _meta(path, "views", patches, 1.5) | {"mr_size": None, "has_cams": True}
    return PatchStore(path, meta, patches, labels, image_ids, cams, visible=visible, collisions=collisions)


def _meta(path: Path, kind: str, patches: np.ndarray, crop: float) -> dict[str, Any]:
    return {
        "format": "2020", "kind": kind, "count": len(patches), "patch_size": patches.shape[1], "crop": crop,
        "bytes": path.stat().st_size,
    }  # fmt: skip


def _whole(content: dict[str, Any], name: str, path: Path) -> np.ndarray:
    """An array of whole numbers."""
    if name not in content:
        raise DataError(f"{path} has no {name}: it is no data file of the 2020 code")
    numbers = _array(content[name])
    if numbers.dtype.kind not in "iu":
        raise DataError(f"{path}: {name} must be whole numbers, got {numbers.dtype} {numbers.shape}")
    return numbers


def _are_below(numbers: np.ndarray, count: int) -> bool:
    return bool(((numbers >= 0) & (numbers < count)).all())


def _array(value: Any) -> np.ndarray:
    return value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
