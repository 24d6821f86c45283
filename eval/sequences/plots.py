"""Curves of the sequence protocols."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.core.image_sequences import CLASSES
from eval.core.results import Result
from eval.core.viz import PALETTE, new_figure, save_figure
from eval.sequences.protocols import MMA_THRESHOLDS_PX

MARKERS = "osD^vPX"


def plot_mma(results: Sequence[Result], path: Path) -> None:
    """Draw mean matching accuracy over 1 … 10 px, one panel overall and one a class, to a PNG."""
    scores = results[0].scores
    panels = [("overall", "")] + [(title, f"{k}/") for k, title in CLASSES.items() if f"{k}/MMA@1" in scores]
    figure, axes = new_figure(1.0 + 4.0 * len(panels), 4.2, len(panels))
    axes = np.atleast_1d(axes)
    for axis, (title, prefix) in zip(axes, panels, strict=True):
        for k, result in enumerate(results):
            values = [result.scores[f"{prefix}MMA@{t}"].value for t in MMA_THRESHOLDS_PX]
            style = {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)]}
            axis.plot(MMA_THRESHOLDS_PX, values, label=result.method["descriptor"], markersize=4, **style)
        axis.set_title(f"{title} ({result.scores[f'{prefix}MMA@1'].n} pairs)")
        axis.set_xlabel("threshold [px]")
        axis.set_xticks(MMA_THRESHOLDS_PX)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean matching accuracy")
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    save_figure(figure, path, dpi=110)
