"""Figures on held-out pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from common.metrics import average_precision, fpr_at_recall, matches_for_recall
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.errors import DataError
from train.augment import center_crop
from train.batches import Part

RATES = {"val_fpr95": 0.95, "val_fpr99": 0.99}


def describe_batch(model: HardNet8, patches: Tensor, crop: float, device: torch.device, rows: int = 512) -> Tensor:
    """Descriptors (N, D) on the CPU of stored patches (N, P, P), cut plainly; the model is left in its mode."""
    was_training = model.training
    model.eval()
    parts = []
    try:
        with torch.inference_mode():
            for start in range(0, len(patches), rows):
                part = center_crop(patches[start : start + rows].to(device), crop, model.patch_size)
                parts.append(model(part).float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(parts) if parts else torch.zeros(0, model.output_dim)


def validate(model: HardNet8, parts: list[Part], device: torch.device) -> dict[str, float]:
    """Figures on pairs of labels that are not trained on, averaged over stores.

    Args:
        model: what to validate.
        parts: for each store its pairs, in adjacent rows.
        device: where the model is.

    Returns:
        ``val_fpr95`` and ``val_fpr99``: share of non-matching pairs (each anchor with the next tuple's positive) that
        lie no farther than the distance which keeps 95 or 99 % of the matching ones; ``val_nn``: share of anchors whose
        nearest positive is their own; ``val_map``: average precision of those matches, nearest first, as HPatches
        has it. Empty without held-out pairs. A store with fewer than 20 (100) pairs has no part in ``val_fpr95``
        (``val_fpr99``), and without any store that has more the rate is left out.

    Raises:
        DataError: descriptors that are no numbers.
    """
    rows = []
    for part in parts:
        descs = describe_batch(model, part.patches, part.crop, device)
        if not descs.isfinite().all():
            raise DataError("the descriptors of held-out patches are not finite")
        anchors, positives = descs[0::2], descs[1::2]
        distances = torch.cdist(anchors, positives)
        nearest, partner = distances.min(dim=1)
        right = partner == torch.arange(len(anchors))
        pairs = torch.cat([distances.diagonal(), (anchors - positives.roll(-1, 0)).norm(dim=1)]).numpy()
        is_match = torch.arange(len(pairs)).numpy() < len(anchors)
        rows.append({
            **{
                name: fpr_at_recall(pairs, is_match, recall)
                for name, recall in RATES.items()
                if len(anchors) >= matches_for_recall(recall)
            },
            "val_nn": float(right.float().mean()),
            "val_map": average_precision(-nearest.numpy(), right.numpy(), len(anchors)),
        })  # fmt: skip
    names = dict.fromkeys(name for row in rows for name in row)
    shared = {name: [row[name] for row in rows if name in row] for name in (*RATES, *names) if name in names}
    return {name: sum(values) / len(values) for name, values in shared.items()}


def rates_left_out(parts: list[Part]) -> list[str]:
    """The rates of :func:`validate` for which no store has pairs enough."""
    most = max((len(part.patches) // 2 for part in parts), default=0)
    return [name for name, recall in RATES.items() if 0 < most < matches_for_recall(recall)]
