"""Which of many photographs are worth matching: those in which the best keypoints of each other are found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common.cache import Cache
from common.h5files import Arrays
from common.shell import progress
from eval.core.pairs import Pair, stored_descriptors
from eval.features.extract import Features
from eval.reconstruct.pairs import exhaustive_pairs

# The best keypoints of an image that are looked for in the others.
_BEST = 512
# Mean deviations above the median of all images at which a keypoint counts as found.
_FOUND = 2.0
_IMAGES_AT_ONCE = 16


def likely_pairs(
    names: Sequence[str],
    features: Mapping[str, Features],
    num_matched: int,
    cache: Cache,
    device: torch.device | None = None,
) -> list[Pair]:
    """Pairs of images that probably show the same, in the order of :func:`exhaustive_pairs`.

    Args:
        names: of the images.
        features: by name, the best keypoints first; descriptors are read from the cache.
        num_matched: each image is paired with so many others, those with the highest :func:`similarities`, and with
            those that so choose it. All pairs where there are no more.
        cache: what is there is not computed again.
        device: where descriptors are compared, default CPU.
    """
    pairs = exhaustive_pairs(names)
    if len(names) <= num_matched + 1:
        return pairs
    about = {"features": [features[name].key for name in names], "best": _BEST, "found": _FOUND}
    _, arrays = cache.compute("likely", about, partial(_compare, names, features, cache, device))
    chosen = choose(arrays["similarities"], num_matched)
    place = {name: index for index, name in enumerate(names)}
    return [(a, b) for a, b in pairs if chosen[place[a], place[b]]]


def choose(similarities: NDArray[np.float32], num_matched: int) -> NDArray[np.bool_]:
    """Pairs (N, N) that are among the ``num_matched`` most similar of either image; of a similarity of 0 none is."""
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :num_matched]
    chosen = np.zeros(similarities.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    chosen &= similarities > 0
    return chosen | chosen.T


@torch.no_grad()
def similarities(descs: Sequence[Tensor]) -> Tensor:
    """How much of each other images show, symmetric float32 (N, N), 0 on the diagonal.

    A descriptor's largest cosine in an image says little by itself: every sky is like every other. So it is compared
    with its largest ones in all images: what is ``_FOUND`` mean deviations above their median counts, by how much more.

    Args:
        descs: of each image (K, D), K may differ; what is not finite counts as zero.
    """
    num = max(1, *(len(rows) for rows in descs))
    unit = torch.stack(
        [F.pad(F.normalize(rows.float().nan_to_num(0, 0, 0)), (0, 0, 0, num - len(rows))) for rows in descs]
    )
    rows = [_found_in_others(unit, index) for index in progress(range(len(unit)), what="look for pairs", unit="image")]
    one_way = torch.stack(rows)
    return one_way + one_way.T


def _found_in_others(unit: Tensor, index: int) -> Tensor:
    """(N,) how much of the image ``index`` of ``unit`` (N, K, D) the others show."""
    blocks = unit.split(_IMAGES_AT_ONCE)
    largest = torch.cat(
        [(unit[index] @ block.flatten(0, 1).T).unflatten(1, block.shape[:2]).amax(2) for block in blocks], 1
    )
    others = torch.arange(len(unit), device=unit.device) != index
    excess = largest - largest[:, others].median(1, keepdim=True).values
    deviation = excess[:, others].abs().mean(1, keepdim=True)
    found = (excess / deviation.clamp(min=1e-6) - _FOUND).clamp(min=0.0).mean(0)
    return found * others


def _compare(
    names: Sequence[str], features: Mapping[str, Features], cache: Cache, device: torch.device | None
) -> Arrays:
    descs = [stored_descriptors(cache, features[name])[:_BEST].to(device or "cpu") for name in names]
    return {"similarities": similarities(descs).cpu().numpy()}
