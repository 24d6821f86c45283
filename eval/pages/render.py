"""Templates to pages: one HTML file that loads nothing, its pictures and numbers inside."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from common.images import reduce_image
from kornia_hardnet8.errors import need
from kornia_hardnet8.files import atomic_path

_TEMPLATES = Path(__file__).parents[1]


def render_page(template: str, **content: Any) -> str:
    """A template below ``eval/`` (``reconstruct/model.html``), filled; every text is escaped."""
    jinja2 = need("jinja2", "eval")
    loader, undefined = jinja2.FileSystemLoader(_TEMPLATES), jinja2.StrictUndefined
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=undefined
    )
    page: str = environment.get_template(template).render(**content)
    return page


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def command_line(argv: Sequence[str]) -> str:
    """A command as it is typed, from ``sys.argv`` (of a run: ``environment["command"]``)."""
    program, *flags = argv
    if Path(program).name == "__main__.py":
        return f"python -m {Path(program).parent.name} {shlex.join(flags)}".rstrip()
    return shlex.join(argv)


def packed(array: NDArray[Any]) -> str:
    """The bytes of an array, little-endian, in base64: what ``unpack`` of the pages' scripts reads."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")


def embedded_photo(image: NDArray[np.uint8], max_side_px: int, quality: int = 80) -> str:
    """An image (H, W, 3) in OpenCV's order, reduced, as the data URI of a JPEG."""
    small, _ = reduce_image(image, max_side_px)
    done, content = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1])
    assert done
    return f"data:image/jpeg;base64,{base64.b64encode(content.tobytes()).decode('ascii')}"


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
