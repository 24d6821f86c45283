"""Curves of the sequence protocols."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.core.image_sequences import CLASSES
from eval.core.results import Result
from eval.core.viz import PALETTE
from eval.sequences.protocols import MMA_THRESHOLDS_PX
from kornia_hardnet8.errors import missing_extra
from kornia_hardnet8.files import atomic_path

MARKERS = "osD^vPX"


def plot_mma(results: Sequence[Result], path: Path) -> None:
    """Draw mean matching accuracy over 1 … 10 px, one panel overall and one a class, to a PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "eval") from None

    scores = results[0].scores
    panels = [("overall", "")] + [(title, f"{k}/") for k, title in CLASSES.items() if f"{k}/MMA@1" in scores]
    figure = Figure(figsize=(1.0 + 4.0 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
