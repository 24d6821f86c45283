"""Templates to pages: one HTML file that loads nothing, its pictures and numbers inside."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
