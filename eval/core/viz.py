"""Pictures: matches between two images, accuracy curves. Files appear whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.metrics import accuracy_curve
from kornia_hardnet8.errors import DataError, need
from kornia_hardnet8.files import atomic_path

# Okabe and Ito: told apart by colour-blind eyes; wrong matches are dashed besides.
GREEN, VERMILION, BLUE = "#009e73", "#d55e00", "#56b4e9"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
STYLES = ("-", "--", "-.", ":")
RIGHT_PX = 3.0
_WORST_PX = 5.0


@dataclass(frozen=True)
class MatchPicture:
    """What :func:`draw_matches` drew."""

    path: Path
    num_matches: int
    """All matches, also those that were left out of the drawing."""
    num_right: int | None
    """Matches within the limit, or inliers; None when both are unknown."""


def draw_matches(
    path: str | Path,
    image0: NDArray[np.uint8],
    image1: NDArray[np.uint8],
    kpts0: ArrayLike,
    kpts1: ArrayLike,
    matches: ArrayLike,
    errors_px: ArrayLike | None = None,
    *,
    inliers: ArrayLike | None = None,
    right_px: float = RIGHT_PX,
    max_lines: int = 300,
    title: str = "",
) -> MatchPicture:
    """Draw two images side by side with their matches as a PNG.

    Right matches are green full lines; wrong ones vermilion dashed lines, beneath them; of unknown errors all are blue.
    Without errors, ``inliers`` take the part of right ones.

    Args:
        path: the picture.
        image0: (H, W) gray or (H, W, 3) r g b.
        image1: the other image, of any size.
        kpts0: (N0, >= 2) pixels, centres at integers.
        kpts1: (N1, >= 2).
        matches: (M, 2) rows of ``kpts0`` and ``kpts1``; M = 0 is fine.
        errors_px: (M,) distance to the true epipolar line or to the true position; NaN or infinity is wrong.
        inliers: (M,) bool, of an estimated geometry; not together with ``errors_px``.
        right_px: the largest error of a right match.
        max_lines: of more matches, evenly chosen ones are drawn; counts are of all.
        title: first part of the caption.

    Raises:
        DataError: the path is not a ``.png``, or errors or inliers are not one a match.
    """
    path = _png(path)
    rows = np.asarray(matches, np.int64).reshape(-1, 2)
    errors = None if errors_px is None else np.asarray(errors_px, np.float64).ravel()
    if errors is not None and len(errors) != len(rows):
        raise DataError(f"draw_matches: {len(errors)} errors for {len(rows)} matches")
    agree = None if inliers is None else np.asarray(inliers, bool).ravel()
    if agree is not None and (errors is not None or len(agree) != len(rows)):
        raise DataError(f"draw_matches: {len(agree)} inlier flags for {len(rows)} matches; errors or flags, not both")
    canvas, shift = _side_by_side(image0, image1)
    lines = _match_lines(kpts0, kpts1, rows, shift)
    right = agree if errors is None else errors <= right_px
    drawn = _evenly(np.arange(len(rows)), max_lines)
    figure, axes = new_figure(canvas.shape[1] / 100, canvas.shape[0] / 100 + 0.35)
    groups = [(np.ones(len(rows), bool), BLUE, "-")]
    if right is not None:
        groups = [(~right, VERMILION, "--"), (right, GREEN, "-")]
    for chosen, color, style in groups:
        part = drawn[chosen[drawn]]
        _draw_lines(axes, lines[part], [color] * len(part), style)
    caption = _caption(title, len(drawn), len(rows), right, "inliers" if errors is None else f"within {right_px:g} px")
    _draw_canvas(axes, canvas, caption)
    figure.subplots_adjust(0, 0, 1, 1 - 0.35 / (canvas.shape[0] / 100 + 0.35))
    save_figure(figure, path, dpi=100)
    return MatchPicture(path, len(rows), None if right is None else int(right.sum()))


def _caption(title: str, num_drawn: int, num_matches: int, right: NDArray[np.bool_] | None, what: str) -> str:
    parts = [title] if title else []
    parts.append(f"{num_matches} matches" + (f", {num_drawn} drawn" if num_drawn < num_matches else ""))
    if right is not None:
        parts.append(f"{int(right.sum())} {what} (green, full), {int((~right).sum())} not (red, dashed)")
    return "; ".join(parts)


def draw_judged_matches(
    path: str | Path,
    image0: NDArray[np.uint8],
    image1: NDArray[np.uint8],
    kpts0: ArrayLike,
    kpts1: ArrayLike,
    matches: ArrayLike,
    inliers: ArrayLike,
    errors_px: ArrayLike,
    *,
    max_lines: int = 200,
    title: str = "",
) -> Path:
    """Draw the inliers of an estimate (above) and what it rejected (below), coloured by their true error, as a PNG.

    Green is 0 px, yellow 2.5 px, vermilion 5 px and more, not finite included.

    Args:
        path: the picture.
        image0: (H, W) gray or (H, W, 3) r g b.
        image1: the other image, of any size.
        kpts0: (N0, >= 2) pixels, centres at integers.
        kpts1: (N1, >= 2).
        matches: (M, 2) rows of ``kpts0`` and ``kpts1``; M = 0 is fine.
        inliers: (M,) bool.
        errors_px: (M,) true epipolar errors.
        max_lines: of more matches, evenly chosen ones are drawn in each half; the counts in the captions are of all.
        title: of the picture.

    Raises:
        DataError: the path is not a ``.png``, or errors or inliers are not one a match.
    """
    path = _png(path)
    rows = np.asarray(matches, np.int64).reshape(-1, 2)
    kept, errors = np.asarray(inliers, bool).ravel(), np.asarray(errors_px, np.float64).ravel()
    if not len(rows) == len(kept) == len(errors):
        raise DataError(f"draw_judged_matches: {len(kept)} flags and {len(errors)} errors for {len(rows)} matches")
    canvas, shift = _side_by_side(image0, image1)
    lines = _match_lines(kpts0, kpts1, rows, shift)
    height, width = canvas.shape[0] / 100, canvas.shape[1] / 100
    figure, panels = new_figure(width + 0.8, 2 * height + 1.0, rows=2)
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colors = LinearSegmentedColormap.from_list("errors", [GREEN, PALETTE[7], VERMILION])
    scale = Normalize(0.0, _WORST_PX)
    shown = np.minimum(np.nan_to_num(errors, nan=np.inf), _WORST_PX)
    for axes, chosen, what in ((panels[0], kept, "inliers"), (panels[1], ~kept, "rejected")):
        part = np.flatnonzero(chosen)
        drawn = _evenly(part, max_lines)
        drawn = drawn[np.argsort(-shown[drawn], kind="stable")]  # the good ones on top
        _draw_lines(axes, lines[drawn], list(colors(scale(shown[drawn]))))
        drawn_of = f", {len(drawn)} drawn" if len(drawn) < len(part) else ""
        right = f"{int((shown[part] <= RIGHT_PX).sum())} within {RIGHT_PX:g} px of the true epipolar lines"
        _draw_canvas(axes, canvas, f"{len(part)} {what}{drawn_of}; {right}")
    # In inches from the top, since the height of the figure is that of the images: the title above the first caption.
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / (2 * height + 1.0), va="top")
    figure.subplots_adjust(0.01, 0.01, width / (width + 0.8), 1 - 0.6 / (2 * height + 1.0), hspace=0.1)
    _error_bar(figure, scale, colors, width)
    save_figure(figure, path, dpi=100)
    return path


def _error_bar(figure: Any, scale: Any, colors: Any, width_in: float) -> None:
    """The legend of the colours, on the right of a picture of that width."""
    from matplotlib.cm import ScalarMappable

    place = figure.add_axes((1 - 0.55 / (width_in + 0.8), 0.25, 0.1 / (width_in + 0.8), 0.5))
    bar = figure.colorbar(ScalarMappable(scale, colors), cax=place, extend="max")
    bar.set_label("true epipolar error (px)", fontsize=8)


def draw_accuracy_curves(
    path: str | Path, errors_deg: Mapping[str, ArrayLike], *, max_deg: int = 10, title: str = ""
) -> Path:
    """Draw the share of pairs below 1, 2, … degrees for each method as a PNG, and the numbers as a CSV beside it.

    Args:
        path: the picture; the data go to the same name with ``.csv``.
        errors_deg: pose errors in degrees by method, in the order of the legend; infinite for a failure.
        max_deg: the largest threshold.
        title: of the picture.

    Raises:
        DataError: the path is not a ``.png``, or there is no method.
    """
    path = _png(path)
    if not errors_deg:
        raise DataError(f"{path}: there is no curve to draw")
    curves = {name: accuracy_curve(np.asarray(errors, np.float64), max_deg) for name, errors in errors_deg.items()}
    x = np.arange(1, max_deg + 1)
    x_label = "pose error threshold (degrees)"
    figure, axes = new_figure(6.4, 4.6)
    for k, (name, curve) in enumerate(curves.items()):
        style = STYLES[k // len(PALETTE) % len(STYLES)]
        marker = "osv^D<>p"[k % 8]
        label = f"{name} (mAA@{max_deg} {curve.mean():.3f})"
        axes.plot(x, curve, style, color=PALETTE[k % len(PALETTE)], marker=marker, markersize=4, label=label)
    axes.set_xlabel(x_label)
    axes.set_ylabel("share of pairs below")
    axes.set_xticks(x)
    axes.set_ylim(0, 1.03)  # markers at 1 are whole
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    if title:
        axes.set_title(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path, dpi=130)
    with atomic_path(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([x_label, *curves])
        writer.writerows([int(v), *(f"{curve[i]:.6g}" for curve in curves.values())] for i, v in enumerate(x))
    return path


def _png(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise DataError(f"{path}: pictures are written as .png")
    return path


def _match_lines(
    kpts0: ArrayLike, kpts1: ArrayLike, rows: NDArray[np.int64], shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Both ends of every match on the canvas, (M, 2, 2)."""
    if not len(rows):
        return np.zeros((0, 2, 2))
    ends0, ends1 = (np.asarray(kpts, np.float64)[rows[:, k], :2] for k, kpts in enumerate((kpts0, kpts1)))
    return np.stack([ends0, ends1 + shift], axis=1)


def _evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """All rows, or ``most`` of them evenly."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int))]


def _draw_lines(axes: Any, lines: NDArray[np.float64], colors: Sequence[Any], style: str = "-") -> None:
    """Draw matches (M, 2, 2), each in its colour, with circles at their ends."""
    if not len(lines):
        return
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(list(lines), colors=colors, linestyles=style, linewidths=0.9))
    rims = [color for color in colors for _ in range(2)]
    axes.scatter(*lines.reshape(-1, 2).T, s=9, facecolors="none", edgecolors=rims, linewidths=0.7)


def _draw_canvas(axes: Any, canvas: NDArray[np.uint8], caption: str) -> None:
    """Show the images that the matches lie on."""
    axes.imshow(canvas, interpolation="nearest")
    axes.set_title(caption, fontsize=9)
    axes.set_axis_off()
    axes.set_xlim(-0.5, canvas.shape[1] - 0.5)
    axes.set_ylim(canvas.shape[0] - 0.5, -0.5)


def _side_by_side(
    image0: NDArray[np.uint8], image1: NDArray[np.uint8], gap: int = 8
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Both images on white, as r g b, and where the second one starts (x, y)."""
    color0, color1 = (np.repeat(i[..., None], 3, 2) if i.ndim == 2 else i for i in (image0, image1))
    height, left = max(len(color0), len(color1)), color0.shape[1] + gap
    canvas = np.full((height, left + color1.shape[1], 3), 255, np.uint8)
    canvas[: len(color0), : color0.shape[1]] = color0
    canvas[: len(color1), left:] = color1
    return canvas, np.array([left, 0.0])


def new_figure(width_in: float, height_in: float, num_panels: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure and its axes (an array of several), drawn without a screen and without matplotlib's global state."""
    figure = need("matplotlib.figure", "eval").Figure(figsize=(width_in, height_in))
    need("matplotlib.backends.backend_agg", "eval").FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, num_panels)


def save_figure(figure: Any, path: Path, dpi: int) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


Floats = NDArray[np.float64]

_MAX_POINTS = 60_000


class Cameras(NamedTuple):
    """A set of cameras that is drawn in one colour."""

    label: str
    poses: Sequence[tuple[ArrayLike, ArrayLike]]
    """(R, t), world to camera."""
    color: str


def draw_model(path: Path, model: Any, title: str = "") -> Path:
    """Draw a pycolmap reconstruction as a PNG; returns the path."""
    images = [model.image(i) for i in sorted(model.reg_image_ids())]
    poses = [(p.rotation.matrix(), p.translation) for p in (image.cam_from_world() for image in images)]
    points = list(model.points3D.values())
    xyz = np.array([p.xyz for p in points], np.float64).reshape(-1, 3)
    colors = np.array([p.color for p in points], np.float64).reshape(-1, 3) / 255
    error, length = model.compute_mean_reprojection_error(), model.compute_mean_track_length()
    text = f"{len(poses)} images, {len(xyz)} points, {error:.2f} px, track length {length:.2f}"
    return draw_cameras(
        path, [Cameras("cameras", poses, VERMILION)], xyz, colors, "; ".join(filter(None, [title, text]))
    )


def draw_cameras(
    path: Path,
    cameras: Sequence[Cameras],
    points: ArrayLike | None = None,
    colors: ArrayLike | None = None,
    title: str = "",
) -> Path:
    """Draw cameras (as pyramids) and points from above and from the front as a PNG.

    Up is the mean of the cameras' up directions, right the mean of their right directions.

    Args:
        path: the picture.
        cameras: sets of cameras in one world, at least one camera altogether.
        points: (N, 3), or None.
        colors: (N, 3) in [0, 1] of the points.
        title: of the picture.
    """
    from matplotlib.collections import LineCollection

    poses = [(np.asarray(R, np.float64), np.asarray(t, np.float64)) for group in cameras for R, t in group.poses]
    centers = np.array([-R.T @ t for R, t in poses])
    xyz = np.asarray(points if points is not None else np.zeros((0, 3)), np.float64)
    axes3 = world_axes([R for R, _ in poses], centers)
    low, high = view_bounds(xyz, centers, axes3)
    size = 0.035 * float(np.max(high - low))
    figure, panels = new_figure(13.0, 6.9, 2)
    chosen = np.linspace(0, len(xyz) - 1, min(len(xyz), _MAX_POINTS)).astype(int)
    dot = float(np.clip(6000 / max(len(chosen), 1), 1.0, 6.0))
    shades = np.asarray(colors, np.float64)[chosen] if colors is not None and len(xyz) else "0.6"
    for panel, (horizontal, vertical, name) in zip(
        panels, ((0, 2, "from above"), (0, 1, "from the front")), strict=True
    ):
        view = axes3[[horizontal, vertical]]
        if len(chosen):
            at = xyz[chosen] @ view.T
            panel.scatter(at[:, 0], at[:, 1], s=dot, c=shades, linewidths=0)
        for group in cameras:
            lines = [line @ view.T for R, t in group.poses for line in _pyramid(R, t, size)]
            label = f"{group.label} ({len(group.poses)})"
            width = 0.9 if group is cameras[-1] else 2.2  # seen where the last set lies on top
            panel.add_collection(LineCollection(lines, colors=group.color, linewidths=width, label=label))
        middle, half = (low + high) / 2, float(np.max((high - low)[[horizontal, vertical]])) / 2
        panel.set_xlim(middle[horizontal] - half, middle[horizontal] + half)
        panel.set_ylim(middle[vertical] - half, middle[vertical] + half)
        panel.set_aspect("equal")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(name, fontsize=9)
    panels[0].legend(fontsize=8, loc="best")
    if title:
        figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path, dpi=110)
    return path


def world_axes(rotations: Sequence[Floats], centers: Floats) -> Floats:
    """Rows right, up, forward (3, 3) of the world as the cameras see it on the mean.

    Args:
        rotations: (3, 3) each, world to camera.
        centers: (N, 3) of the same cameras.
    """
    up = _unit(-np.mean([R[1] for R in rotations], axis=0))
    if up is None:  # cameras on all sides of something: the plane that they lie in
        up = np.linalg.svd(centers - centers.mean(axis=0))[2][2]
    right = np.mean([R[0] for R in rotations], axis=0)
    flat = _unit(right - up * (up @ right), 0.1)
    if flat is None:  # all around: any direction does
        candidate = np.eye(3)[np.argmin(np.abs(up))]
        flat = _unit(candidate - up * (up @ candidate))
    assert flat is not None
    return np.stack([flat, up, np.cross(up, flat)])


def _unit(vector: Floats, least: float = 1e-3) -> Floats | None:
    length = float(np.linalg.norm(vector))
    return vector / length if length > least else None


def view_bounds(points: Floats, centers: Floats, axes: Floats) -> tuple[Floats, Floats]:
    """Lower and upper bound (3,) of the view: all cameras, and the points without the outermost ones."""
    at = centers @ axes.T
    low, high = at.min(axis=0), at.max(axis=0)
    if len(points):
        seen = points @ axes.T
        low = np.minimum(low, np.percentile(seen, 2, axis=0))
        high = np.maximum(high, np.percentile(seen, 98, axis=0))
    margin = 0.06 * max(float(np.max(high - low)), 1e-9)
    return low - margin, high + margin


def _pyramid(R: ArrayLike, t: ArrayLike, size: float) -> list[Floats]:
    """Polylines (n, 3) of a camera: its image rectangle, a mark on its upper side, and the edges to its centre."""
    rotation, translation = np.asarray(R, np.float64), np.asarray(t, np.float64)
    corners = np.array([[-0.6, -0.45, 1], [0.6, -0.45, 1], [0.6, 0.45, 1], [-0.6, 0.45, 1], [-0.6, -0.45, 1]])
    mark = np.array([[-0.3, -0.45, 1], [0.0, -0.75, 1], [0.3, -0.45, 1]])
    apex = np.zeros(3)
    lines = [corners, mark, *(np.stack([apex, corner]) for corner in corners[:4])]
    return [(line * size - translation) @ rotation for line in lines]
