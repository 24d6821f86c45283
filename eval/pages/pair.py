"""Two photographs and their matches as one page, with a slider over the ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.pages.render import embedded_photo, packed, render_page, write_page

_PHOTO_SIDE_PX = 1400


class Candidates(NamedTuple):
    """Matches that a page shows: those of a run, and those that its ratio test left out."""

    at: NDArray[np.floating]
    """(M, 4) x0, y0, x1, y1 in the photographs, pixel centres at integers."""
    ratios: NDArray[np.floating]
    """(M,) see :func:`eval.core.matching.match_ratios`."""
    errors_px: NDArray[np.floating]
    """(M,) distance to what the geometry expects; NaN without a geometry."""
    agrees: NDArray[np.bool_]
    """(M,)"""


class Geometry(NamedTuple):
    """What the matches are judged by."""

    name: str
    """``fundamental matrix`` or ``homography``; empty when none was found."""
    threshold_px: float
    matrix: NDArray[np.floating] | None
    """(3, 3) between the photographs; None when none was found."""


def write_pair_page(
    path: Path,
    names: tuple[str, str],
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    candidates: Candidates,
    geometry: Geometry,
    ratio: float | None,
    *,
    facts: str = "",
    explained: str = "",
    made: str = "",
) -> Path:
    """Write the page; returns its path.

    Args:
        path: the page.
        names: of the photographs.
        images: (H, W, 3) in OpenCV's order.
        candidates: may be empty.
        geometry: that was estimated.
        ratio: where the slider stands at first; None: at 1.
        facts: a line below the heading.
        explained: what the page does not say by itself, sentences.
        made: how the matches were made, a sentence.
    """
    is_fundamental = geometry.matrix is not None and geometry.name == "fundamental matrix"
    data: dict[str, Any] = {
        "sizes": [[image.shape[1], image.shape[0]] for image in images],
        "pictures": [embedded_photo(image, _PHOTO_SIDE_PX, quality=85) for image in images],
        "at": packed(np.asarray(candidates.at, np.float32).reshape(-1, 4)),
        "ratios": packed(np.asarray(candidates.ratios, np.float32)),
        "errors": packed(np.asarray(candidates.errors_px, np.float32)),
        "agrees": packed(np.asarray(candidates.agrees, np.uint8)),
        "ratio": ratio,
        "geometry": geometry.name,
        "threshold": geometry.threshold_px,
        "fundamental": np.asarray(geometry.matrix).tolist() if is_fundamental else None,
    }
    title = " and ".join(names)
    write_page(
        path, render_page("pages/pair.html", title=title, facts=facts, explained=explained, made=made, data=data)
    )
    return path
