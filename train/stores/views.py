"""Views of a photograph: random homographies and photometric change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.images import load_cv2

MAX_TILT_DEG = 60.0
MAX_LOG2_SCALE = 1.0
_MAX_OVERSAMPLING = 4


@dataclass(frozen=True)
class RenderedView:
    """A rendered view: ``image`` uint8 (H, W); ``homography`` (3, 3) maps photo pixels to view pixels."""

    image: np.ndarray
    homography: np.ndarray


def random_homography(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A random homography from a photo to a view of the same size.

    Tilt up to 60 degrees, any rotation in the image, scale 0.5 ... 2, and a shift that keeps the photo in sight. Tilt
    is an out-of-plane rotation about a random axis, seen by a camera whose focal length is 0.8 to 2 long sides.
    """
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    focal = rng.uniform(0.8, 2.0) * max(width, height)
    tilt = np.deg2rad(rng.uniform(0.0, MAX_TILT_DEG))
    axis = rng.uniform(0.0, 2 * np.pi)
    scale = 2.0 ** rng.uniform(-MAX_LOG2_SCALE, MAX_LOG2_SCALE)
    spin = rng.uniform(0.0, 2 * np.pi)
    # the point looked at: anywhere near the middle; the closer the view, the further from the centre it may be
    reach = 0.5 * max(0.2, 1.0 - 0.5 / scale)
    target = centre + rng.uniform(-reach, reach, size=2) * (width, height)

    k = np.array([np.cos(axis), np.sin(axis), 0.0])
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    turn = np.eye(3) + np.sin(tilt) * cross + (1 - np.cos(tilt)) * cross @ cross
    to_plane = np.array([[1, 0, -target[0]], [0, 1, -target[1]], [0, 0, 1.0]])
    # plane point (x, y, 0) -> turn @ (x, y, 0) + (0, 0, focal), projected with that focal length
    project = np.diag([focal, focal, 1.0]) @ np.column_stack([turn[:, 0], turn[:, 1], [0, 0, focal]])
    cos, sin = scale * np.cos(spin), scale * np.sin(spin)
    place = np.array([[cos, -sin, centre[0]], [sin, cos, centre[1]], [0, 0, 1.0]])
    homography = place @ project @ to_plane
    return homography / (homography[2] @ [*target, 1.0])


def render_view(photo: np.ndarray, homography: np.ndarray, rng: np.random.Generator) -> RenderedView:
    """Warp ``photo`` (H, W, 3) by ``homography`` and change light, sharpness and noise; outside it is mirrored."""
    return RenderedView(photometric(warp(gray_mix(photo, rng), homography), rng), homography)


def gray_mix(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gray (H, W) float32 of an RGB photo with random channel weights about the usual ones."""
    weights = np.array([0.299, 0.587, 0.114])
    if rng.random() < 0.5:
        weights = 0.5 * weights + 0.5 * rng.dirichlet([1.0, 1.0, 1.0])
    return photo.astype(np.float32) @ weights.astype(np.float32)


def warp(image: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """Warp a float32 image (H, W) to its own size, sampled finely enough where the view is smaller than the photo."""
    cv2 = load_cv2()
    height, width = image.shape
    times = int(np.clip(np.ceil(_shrinking(homography, width, height)), 1, _MAX_OVERSAMPLING))
    finer = np.array([[times, 0, (times - 1) / 2], [0, times, (times - 1) / 2], [0, 0, 1.0]])
    large = cv2.warpPerspective(
        image, finer @ homography, (times * width, times * height), flags=cv2.INTER_CUBIC if times == 1 else
        cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101,
    )  # fmt: skip
    result: np.ndarray = large.reshape(height, times, width, times).mean(axis=(1, 3)) if times > 1 else large
    return result


def _shrinking(homography: np.ndarray, width: int, height: int) -> float:
    """The largest ratio photo pixels / view pixels in any direction, over a grid of the part of the photo in view."""
    inverse = np.linalg.inv(homography)
    x, y = np.meshgrid(np.linspace(0, width - 1, 5), np.linspace(0, height - 1, 5))
    view = np.stack([x.ravel(), y.ravel()], axis=1)
    photo = transfer(inverse, view)
    inside = ((photo >= 0) & (photo <= (width - 1, height - 1))).all(axis=1)
    if not inside.any():
        return 1.0
    return float(np.linalg.norm(jacobians(inverse, view[inside]), ord=2, axis=(1, 2)).max())


def transfer(homography: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Map points (n, 2); a point at or behind the horizon becomes NaN."""
    mapped = np.concatenate([xy, np.ones((len(xy), 1))], axis=1) @ homography.T
    w = np.where(mapped[:, 2:] > 1e-9, mapped[:, 2:], np.nan)
    result: np.ndarray = mapped[:, :2] / w
    return result


def jacobians(homography: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Derivatives (n, 2, 2) of :func:`transfer` at points (n, 2)."""
    mapped = np.concatenate([xy, np.ones((len(xy), 1))], axis=1) @ homography.T
    w = np.where(mapped[:, 2] > 1e-9, mapped[:, 2], np.nan)[:, None, None]
    result: np.ndarray = (homography[None, :2, :2] - (mapped[:, :2, None] / w) * homography[None, 2:, :2]) / w
    return result


def photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random light and camera on a gray image 0..255 (H, W), as uint8.

    Shading, gamma, exposure and contrast, defocus or motion blur, noise, JPEG; each with its own probability.
    """
    cv2 = load_cv2()
    height, width = image.shape
    light = image / 255.0
    if rng.random() < 0.5:
        light = light * _shading(height, width, rng)
    if rng.random() < 0.8:
        light = np.clip(light, 0, None) ** 2.0 ** rng.uniform(-0.8, 0.8)
    if rng.random() < 0.8:
        gain = 2.0 ** rng.uniform(-1.0, 0.6)
        light = gain * (light - light.mean()) + light.mean() * 2.0 ** rng.uniform(-0.8, 0.4)
    if rng.random() < 0.4:
        sigma = rng.uniform(0.3, 1.6)
        light = cv2.GaussianBlur(light.astype(np.float32), (0, 0), sigma)
    if rng.random() < 0.15:
        light = cv2.filter2D(light.astype(np.float32), -1, _motion_kernel(rng), borderType=cv2.BORDER_REFLECT_101)
    light = np.clip(light, 0.0, 1.0)
    if rng.random() < 0.7:
        read, shot = 2.0 ** rng.uniform(-9, -5.3), 2.0 ** rng.uniform(-9, -5.3)
        light = light + rng.standard_normal(light.shape) * np.sqrt(read**2 + shot**2 * light)
    result = np.rint(np.clip(light, 0.0, 1.0) * 255).astype(np.uint8)
    if rng.random() < 0.7:
        quality = int(rng.integers(30, 96))
        _, code = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, quality])
        result = cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)
    return result


def _shading(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth factor (H, W) about 1: a gradient across the image, and sometimes a shadow with a soft edge."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 1.2)
    along = ((x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle)) * strength
    factor = np.exp(along)
    if rng.random() < 0.5:
        angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.9)
        softness = 2.0 ** rng.uniform(-7, -2)
        place = rng.uniform(-0.25, 0.25)
        side = ((x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle) - place) / softness
        factor = factor * (depth + (1 - depth) / (1 + np.exp(-np.clip(side, -30, 30))))
    return factor


def _motion_kernel(rng: np.random.Generator) -> np.ndarray:
    """A line of 3 to 7 pixels in a random direction, with sum 1."""
    length, angle = rng.uniform(3, 7), rng.uniform(0, np.pi)
    size = 9
    kernel = np.zeros((size, size), np.float32)
    for t in np.linspace(-length / 2, length / 2, 64):
        x, y = size // 2 + t * np.cos(angle), size // 2 + t * np.sin(angle)
        kernel[round(y), round(x)] += 1
    return kernel / kernel.sum()
