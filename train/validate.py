"""Figures on held-out pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from eval.metrics import fpr95
from kornia_hardnet8 import HardNet8
from train.augment import center_crop
from train.batches import Batch


def describe_batch(model: HardNet8, patches: Tensor, crop: float, device: torch.device, rows: int = 512) -> Tensor:
    """Descriptors (N, D) on the CPU of stored patches (N, P, P), cut plainly; the model is left in its mode."""
    was_training = model.training
    model.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(patches), rows):
            part = center_crop(patches[start : start + rows].to(device), crop, model.patch_size)
            parts.append(model(part).float().cpu())
    model.train(was_training)
    return torch.cat(parts) if parts else torch.zeros(0, model.output_dim)


def validate(model: HardNet8, batches: list[Batch], device: torch.device) -> dict[str, float]:
    """Figures on pairs of labels that are not trained on, averaged over stores.

    Returns:
        ``val_fpr95``: share of non-matching pairs (each anchor with the next tuple's positive) that lie nearer than
        the threshold which keeps 95 % of the matching ones; ``val_nn``: share of anchors whose nearest positive is
        their own. Empty without held-out pairs.
    """
    rates, hits = [], []
    for batch in batches:
        descs = describe_batch(model, batch.patches, batch.crop, device)
        anchors, positives = descs[0::2], descs[1::2]
        distances = torch.cdist(anchors, positives)
        matching, other = distances.diagonal(), (anchors - positives.roll(-1, 0)).norm(dim=1)
        is_match = torch.cat([torch.ones(len(matching)), torch.zeros(len(other))]).bool()
        rates.append(float(fpr95(torch.cat([matching, other]).numpy(), is_match.numpy())))
        hits.append(float((distances.argmin(dim=1) == torch.arange(len(anchors))).float().mean()))
    if not rates:
        return {}
    return {"val_fpr95": sum(rates) / len(rates), "val_nn": sum(hits) / len(hits)}
