"""Draw the pictures of docs/conventions.md: ``python docs/make_drawings.py`` writes docs/images/*.svg."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
INK, SOFT, BLUE, RED = "#1b1b1b", "#9aa0a6", "#0072b2", "#d55e00"


def line(x0: float, y0: float, x1: float, y1: float, color: str = INK, width: float = 2, more: str = "") -> str:
    """A straight line; ``more`` holds further attributes."""
    return f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="{color}" stroke-width="{width:g}" {more}/>'


def arrow(x0: float, y0: float, x1: float, y1: float, color: str = INK) -> str:
    """A line with a head at its end."""
    angle = math.atan2(y1 - y0, x1 - x0)
    tips = [(x1 - 11 * math.cos(angle + side), y1 - 11 * math.sin(angle + side)) for side in (0.4, -0.4)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(x1, y1), *tips])
    return line(x0, y0, x1 - 6 * math.cos(angle), y1 - 6 * math.sin(angle), color) + (
        f'<polygon points="{points}" fill="{color}"/>'
    )


def text(x: float, y: float, words: str, color: str = INK, anchor: str = "start") -> str:
    """Words, ``x`` being their start, middle or end."""
    return f'<text x="{x:g}" y="{y:g}" fill="{color}" text-anchor="{anchor}">{words}</text>'


def arc(x: float, y: float, radius: float, degrees: float, color: str) -> str:
    """From the direction of +x by ``degrees``, positive is clockwise on the screen, with a head at its end."""
    points = [(x + radius * math.cos(a), y + radius * math.sin(a))
              for a in (math.radians(degrees) * k / 40 for k in range(41))]  # fmt: skip
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>' + arrow(
        *points[-6], *points[-1], color
    )


def pixels() -> str:
    """The upper left corner of an image, with both conventions."""
    side, x0, y0 = 90, 60, 60
    parts = []
    for k in range(4):
        parts += [line(x0 + k * side, y0, x0 + k * side, y0 + 2 * side, SOFT, 1.5)]
    for k in range(3):
        parts += [line(x0, y0 + k * side, x0 + 3 * side, y0 + k * side, SOFT, 1.5)]
    for row in range(2):
        for column in range(3):
            x, y = x0 + (column + 0.5) * side, y0 + (row + 0.5) * side
            parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="4" fill="{BLUE}"/>')
            parts.append(text(x, y - 12, f"({column}, {row})", BLUE, "middle"))
            parts.append(text(x, y + 24, f"({column + 0.5:g}, {row + 0.5:g})", RED, "middle"))
    parts.append(f'<circle cx="{x0}" cy="{y0}" r="4" fill="{RED}"/>')
    parts.append(text(x0 - 8, y0 - 10, "COLMAP: (0, 0)", RED))
    parts.append(text(x0 + 130, y0 - 10, "here: (-0.5, -0.5)", BLUE))
    parts.append(text(350, 110, "here, kornia, OpenCV", BLUE))
    parts.append(text(350, 136, "COLMAP: 0.5 more", RED))
    return svg(560, 270, parts)


def frame() -> str:
    """A keypoint, its sigma, and the patch that is described."""
    x, y, sigma = 190, 170, 10
    half, turn = 12 * sigma, math.radians(-20)
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    rotated = [(x + half * (a * math.cos(turn) - b * math.sin(turn)),
                y + half * (a * math.sin(turn) + b * math.cos(turn))) for a, b in corners]  # fmt: skip
    square = " ".join(f"{px:.1f},{py:.1f}" for px, py in rotated)
    parts = [f'<polygon points="{square}" fill="#0072b214" stroke="{BLUE}" stroke-width="2"/>']
    parts.append(f'<circle cx="{x}" cy="{y}" r="{sigma}" fill="none" stroke="{RED}" stroke-width="2.5"/>')
    parts.append(arrow(x, y, x + half * math.cos(turn), y + half * math.sin(turn), BLUE))
    parts.append(arrow(x, y, x - half * math.sin(turn), y + half * math.cos(turn), BLUE))
    parts.append(text(x + 84, y - 50, "first column of A", BLUE, "end"))
    parts.append(text(x + 22, y + 92, "second", BLUE, "end"))
    parts.append(text(x - 12, y - 16, "σ", RED, "end"))
    for k, (color, words) in enumerate([
        (RED, "circle: radius σ of the detection"),
        (RED, "OpenCV: size = 2 σ;  COLMAP: scale = σ"),
        (BLUE, "square: the patch, [-1, 1]² of the frame"),
        (BLUE, "half its side = mr_size · σ = 12 σ"),
        (BLUE, "its side = 24 σ = 12 · size = 2 · √det A"),
    ]):  # fmt: skip
        parts.append(text(30, 350 + 26 * k, words, color))
    return svg(400, 475, parts)


def angles() -> str:
    """The two senses of rotation, y pointing down."""
    parts = []
    for x, degrees, color, words in (
        (150, 60, RED, "OpenCV, COLMAP: clockwise"),
        (450, -60, BLUE, "kornia: counter-clockwise"),
    ):
        y = 150
        parts += [arrow(x, y, x + 110, y, SOFT), arrow(x, y, x, y + 110, SOFT)]
        parts += [text(x + 116, y + 5, "x", SOFT), text(x - 4, y + 128, "y", SOFT)]
        end = math.radians(degrees)
        parts += [arrow(x, y, x + 100 * math.cos(end), y + 100 * math.sin(end), color), arc(x, y, 55, degrees, color)]
        parts.append(text(x - 90, 40, words, color))
    return svg(620, 290, parts)


def svg(width: int, height: int, parts: Iterable[str]) -> str:
    """The file: white ground, so that it can be read on dark pages too."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="16">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        *parts,
        "</svg>\n",
    ])  # fmt: skip


if __name__ == "__main__":
    for drawing in (pixels, frame, angles):
        (IMAGES / f"{drawing.__name__}.svg").write_text(drawing(), encoding="utf-8")
