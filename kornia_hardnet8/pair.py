"""Two photographs in one call: read them, match them, draw what was matched."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import kornia
import kornia.feature as KF
import torch
import torch.nn.functional as F
from kornia.geometry import RANSAC
from kornia.io import ImageLoadType, load_image
from torch import Tensor

from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.feature import HardNet8Feature

# The seven-point and eight-point solvers of the estimator need as many.
_FEWEST = 8
_GREEN, _VERMILION = (0, 220, 130), (213, 94, 0)
# A picture of lines is drawn at this scale and reduced, so that they are smooth.
_OVERSAMPLING = 2


class PairMatches(NamedTuple):
    """What two pictures have in common; one row a match, in pixels of the pictures as they were given.

    Pixel centres lie at integers: (0, 0) is the centre of the upper left pixel.
    """

    points0: Tensor
    """(M, 2) x, y in the first picture."""
    points1: Tensor
    """(M, 2) x, y in the second."""
    ratios: Tensor
    """(M,) distance to the nearest over that to the second nearest descriptor, the larger of both ways; lower is
    better."""
    inliers: Tensor
    """(M,) bool: within the threshold of the epipolar geometry."""
    fundamental: Tensor | None
    """(3, 3) with x1' F x0 = 0, or None where there were too few matches for one."""

    @property
    def num_inliers(self) -> int:
        """How many matches agree with the geometry; below about 15 they may be chance."""
        return int(self.inliers.sum())


def read_image(path: str | Path) -> Tensor:
    """A picture file (JPEG, PNG, TIFF, WebP) as (3, H, W) float32 in [0, 1], its pixels as stored (no EXIF turning).

    Raises:
        MissingFileError: there is no such file.
        DataError: it is damaged, cut short, or of a kind that kornia does not read.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} is not there")
    try:
        return load_image(path, ImageLoadType.RGB32)
    except Exception as error:  # kornia_rs raises a bare Exception, too
        raise DataError(f"{path} cannot be read as a picture: {' '.join(str(error).split())[:160]}") from None


def example_pair() -> tuple[Path, Path]:
    """Two small pictures that come with the package: a market square (rendered) by day and by night."""
    folder = Path(__file__).parent / "pictures"
    return folder / "square_day.jpg", folder / "square_night.jpg"


def match_pair(
    image0: str | Path | Tensor,
    image1: str | Path | Tensor,
    feature: HardNet8Feature | None = None,
    *,
    max_ratio: float = 0.9,
    threshold_px: float = 1.0,
    seed: int = 0,
) -> PairMatches:
    """Match two pictures: DoG keypoints, HardNet8, mutual nearest neighbours, and kornia's RANSAC for the geometry.

    Args:
        image0: a path, or a picture (1 or 3, H, W) floating point in [0, 1].
        image1: the other one; its size may differ.
        feature: what finds and describes keypoints; None is ``HardNet8Feature(2048, precision="auto")``. Build one and
            pass it where there are many pairs.
        max_ratio: a match is kept when its ratio is at most this, in (0, 1].
        threshold_px: of an inlier, pixels (Sampson distance).
        seed: of RANSAC; the caller's random state is left as it was.

    Returns:
        The matches, with 0 rows where there are none.

    Raises:
        UsageError: ``max_ratio`` or ``threshold_px`` out of range.
        MissingFileError, DataError: a picture that cannot be read, or is no picture.

    Source: matching as ``kornia.feature.match_smnn`` (Lowe 2004), geometry as ``kornia.geometry.RANSAC``.

    Example:
        >>> matches = match_pair(*example_pair())
        >>> matches.num_inliers > 100
        True
    """
    if not 0 < max_ratio <= 1:
        raise UsageError(f"max_ratio must be above 0 and at most 1, got {max_ratio:g}")
    if not threshold_px > 0:
        raise UsageError(f"threshold_px must be positive, got {threshold_px:g}")
    feature = HardNet8Feature(precision="auto") if feature is None else feature
    images = [read_image(image) if isinstance(image, (str, Path)) else image for image in (image0, image1)]
    with torch.inference_mode():
        (lafs0, _, descs0), (lafs1, _, descs1) = (feature.detect_and_describe(image) for image in images)
        ratios, matches = KF.match_smnn(descs0, descs1, max_ratio)
        points0, points1 = lafs0[matches[:, 0], :, 2], lafs1[matches[:, 1], :, 2]
    points0, points1, ratios = points0.clone(), points1.clone(), ratios.reshape(-1).clone()
    fundamental, inliers = _fundamental(points0, points1, threshold_px, seed)
    return PairMatches(points0, points1, ratios, inliers, fundamental)


def _fundamental(points0: Tensor, points1: Tensor, threshold_px: float, seed: int) -> tuple[Tensor | None, Tensor]:
    """The matrix (3, 3) and its inliers (M,); None and no inlier where kornia finds none."""
    nothing = torch.zeros(len(points0), dtype=torch.bool, device=points0.device)
    if len(points0) < _FEWEST:
        return None, nothing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ransac = RANSAC("fundamental", inl_th=threshold_px, max_iter=20, confidence=0.9999)
        matrix, inliers = ransac(points0, points1)
    inliers = inliers.reshape(-1).bool()
    if not torch.isfinite(matrix).all() or int(inliers.sum()) < _FEWEST:
        return None, nothing
    return matrix, inliers


def draw_matches(
    image0: str | Path | Tensor, image1: str | Path | Tensor, matches: PairMatches, *, rejected: bool = False
) -> Tensor:
    """Both pictures side by side with a green line for each inlier; the lines are kornia's.

    Args:
        image0: as for :func:`match_pair`.
        image1: the other one.
        matches: what :func:`match_pair` returned for these two.
        rejected: draw the matches that the geometry rejects too, in vermilion.

    Returns:
        (3, H, W) uint8, on the CPU, which ``kornia.io.write_image`` takes; H is that of the higher picture.
    """
    images = [image if isinstance(image, Tensor) else read_image(image) for image in (image0, image1)]
    images = [image.detach().cpu().float().clamp(0, 1).expand(3, -1, -1) for image in images]
    height, split = max(image.shape[1] for image in images), images[0].shape[2]
    canvas = torch.cat([F.pad(image, (0, 0, 0, height - image.shape[1]), value=1.0) for image in images], dim=2)
    canvas = F.interpolate(canvas[None], scale_factor=_OVERSAMPLING, mode="nearest")[0].contiguous()
    last = torch.tensor([canvas.shape[2], canvas.shape[1]]) - 1
    groups = [(~matches.inliers, _VERMILION)] if rejected else []
    for mask, color in [*groups, (matches.inliers, _GREEN)]:
        starts, ends = matches.points0[mask].cpu(), matches.points1[mask].cpu() + torch.tensor([split, 0])
        for shift in (0, 1):  # two strokes side by side make a line of one pixel when reduced
            places = [(points * _OVERSAMPLING + shift).round().clamp(min=0).minimum(last) for points in (starts, ends)]
            for start, end in zip(*places, strict=True):
                canvas = _draw_line(canvas, start.long(), end.long(), torch.tensor(color) / 255)
    small = F.avg_pool2d(canvas[None], _OVERSAMPLING)[0]
    return (small * 255).round().to(torch.uint8)


# kornia 0.9 moved it.
_draw_line = getattr(kornia.image, "draw_line", None) or kornia.utils.draw_line
