"""The scene: a market square with a town hall, side streets, stalls and a fountain; who looks at it, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from rendered.render import Development, Light, ShadowMap, View, depth_map, develop, radiance
from rendered.solids import Ball, Box, Column, Sheet, Solid
from rendered.textures import Array, Painter, Texture, f32

TARGET = np.array([0.0, 6.0, 2.6])
SIZES = ((640, 480), (720, 540), (480, 640), (640, 512))
LAMPS = ((-7.5, 2.5), (7.5, 2.5), (-4.5, -3.5), (5.0, -4.0))
NUM_VIEWS = 12


@dataclass(frozen=True)
class Shot:
    """One photograph to be: camera, time of day (index into ``lights()``), development, passers-by."""

    view: View
    light: int
    development: Development
    people: Sequence[Solid]


class Photograph(NamedTuple):
    """One photograph with its truth."""

    view: View
    jpeg: bytes
    """The picture as a file."""
    depth: Array
    """(H, W), exact."""


def photographs(seed: int) -> Iterator[Photograph]:
    """The ``NUM_VIEWS`` photographs of the square; the same seed gives the same ones on one machine."""
    rng = np.random.default_rng(seed)
    solids, planned, lit = square(rng), shots(rng), lights()
    sky = Painter(rng, 14, 6, 100).noise(3.0, 7, 0.6)
    center = f32([TARGET[0], TARGET[1], 0])
    zenith = ShadowMap.of(solids, (0.05, 0.02, 1), center)
    suns = {k: ShadowMap.of(solids, light.sun, center) for k, light in enumerate(lit) if max(light.sun_color) > 0}
    for shot in planned:
        everything = [*solids, *shot.people]
        light = radiance(everything, shot.view, lit[shot.light], (suns.get(shot.light, zenith), zenith), sky)
        picture = develop(light, shot.development, rng)
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(80, 94))]
        jpeg = cv2.imencode(".jpg", picture[..., ::-1], quality)[1].tobytes()
        yield Photograph(shot.view, jpeg, depth_map(everything, shot.view))


def lights() -> list[Light]:
    """Morning, noon, overcast, evening, dusk."""
    lamps = [((x, y, 3.9), (9.0, 6.0, 2.6)) for x, y in LAMPS] + [((0.0, 8.0, 4.2), (7.0, 5.0, 2.4))]
    return [
        Light((0.8, -0.25, 0.42), (2.6, 2.1, 1.5), (0.30, 0.38, 0.55), (0.75, 0.72, 0.70), 0.15),
        Light((-0.25, -0.6, 0.85), (3.0, 2.85, 2.6), (0.34, 0.45, 0.68), (0.75, 0.85, 1.0), 0.3),
        Light((0.1, -0.2, 1.0), (0.0, 0.0, 0.0), (0.9, 0.93, 1.0), (1.0, 1.0, 1.03), 0.9),
        Light((-0.9, -0.3, 0.28), (2.8, 1.7, 0.8), (0.30, 0.34, 0.50), (1.0, 0.75, 0.5), 0.25),
        Light((0.1, -0.2, 1.0), (0.0, 0.0, 0.0), (0.05, 0.07, 0.15), (0.16, 0.13, 0.18), 0.5, lamps, 0.9),
    ]


def square(rng: np.random.Generator) -> list[Solid]:
    """Everything that stays where it is."""
    paint = _textures(rng)
    solids: list[Solid] = [
        Sheet((-13, 13, 0), (26, 0, 0), (0, -28, 0), [paint["pavers"]]),
        Sheet((-160, 160, -0.05), (320, 0, 0), (0, -320, 0), [paint["pavers"]]),
    ]
    plain, roof = paint["plain"], paint["roof"]
    # town hall with its portico
    solids += _house((0, 15, 0), (18, 8, 9.6), [paint["hall"], plain, plain, plain, roof], roof, paint["stone"])
    solids += [Column((x, 9.1, 0.3), 0.38, 4.0, [paint["flutes"]], turn=x) for x in np.linspace(-5.6, 5.6, 5)]
    solids += [Box((0, 9.8, 4.3), (13.2, 2.6, 0.7), [paint["frieze"]] * 4 + [roof])]
    solids += [
        Box((0, 9.7, 0), (13.6, 3.0, 0.3), [paint["stone"]]),
        Box((0, 8.0, 0), (14.4, 0.5, 0.15), [paint["stone"]]),
    ]
    solids += [Box((0, 13, 9.6), (4.2, 4.2, 5.2), [paint["tower"]] * 4 + [roof])]
    solids += [Sheet((-3, 10.7, 14.6), (6, 0, 0), (0, 2.3, 2.4), [roof]), Ball((0, 13, 15.6), 1.5, [paint["stone"]])]
    # houses on both sides and behind
    west, east = paint["brick_house"], paint["plaster_house"]
    solids += _house(
        (-14.5, 4, 0), (6, 15, 8.2), [paint["gable"], west, plain, plain, roof], roof, paint["stone"], True
    )
    solids += _house(
        (14.5, 3, 0), (6, 14, 7.2), [paint["gable2"], plain, plain, east, roof], roof, paint["stone"], True
    )
    solids += [Box((-14.2, 20, 0), (8, 6, 12), [paint["back"]] * 4 + [roof], yaw=0.15)]
    solids += [Box((14.6, 19.5, 0), (8, 6, 10), [paint["back2"]] * 4 + [roof], yaw=-0.2)]
    # fountain with a column of odd blocks
    solids += [
        Column((0, 1.2, 0), 2.2, 0.55, [paint["masonry"], paint["pool"]]),
        Column((0, 1.2, 0.5), 0.45, 1.3, [paint["flutes"]]),
    ]
    z = 1.8
    for size in (1.5, 1.1, 0.8, 0.55):
        solids += [
            Box((0, 1.2, z), (size, size, 0.45), [paint["carving"]], yaw=rng.uniform(0, 1.5), offset=(size * 2, z))
        ]
        z += 0.45
    solids += [Ball((0, 1.2, z + 0.35), 0.42, [paint["carving"]])]
    return solids + _things(paint, rng)


def _things(paint: dict[str, Texture], rng: np.random.Generator) -> list[Solid]:
    """Stalls, bills, crates, lamps, trees."""
    solids: list[Solid] = []
    for k, (x, y, yaw) in enumerate([(-7.2, 5.6, 0.35), (6.6, 5.2, -0.3), (-6.0, -1.0, 0.9), (7.4, -0.8, -0.8)]):
        solids += _stall(x, y, yaw, paint[f"awning{k % 2}"], paint["counter"], paint["wood"], rng)
    solids += [
        Column((-3.6, 4.0, 0), 0.62, 2.9, [paint["bills"]], turn=1.0),
        Column((3.9, 2.4, 0), 0.62, 2.9, [paint["bills"]], turn=4.0),
    ]
    solids += [
        Box((2.2, 6.4, 0), (2.4, 0.12, 1.7), [paint["board"]], yaw=0.25),
        Box((-2.4, 6.9, 0), (0.1, 1.5, 1.4), [paint["board"]], yaw=0.5),
    ]
    for _ in range(22):
        x, y = rng.uniform(-8, 8), rng.uniform(-3.5, 7.2)
        if np.hypot(x, y - 1.2) > 3.0:
            size = rng.uniform(0.35, 0.8)
            shape = (size, size * rng.uniform(0.7, 1.3), size * rng.uniform(0.6, 1.2))
            which = paint[("crate", "wood", "counter", "carving")[int(rng.integers(4))]]
            solids += [
                Box((x, y, 0), shape, [which], yaw=rng.uniform(0, 3), offset=(rng.uniform(0, 3), rng.uniform(0, 1)))
            ]
    for x, y in LAMPS:
        solids += [Column((x, y, 0), 0.07, 3.8, [paint["metal"]]), Ball((x, y, 3.95), 0.2, [paint["lamp"]])]
    for x, y in ((-9.4, 9.4), (9.6, 9.6)):
        solids += [Column((x, y, 0), 0.17, 2.6, [paint["wood"]])]
        solids += [
            Ball((x + dx, y + dy, 3.2 + dz), radius, [paint["leaves"]], turn=dx)
            for dx, dy, dz, radius in np.column_stack([rng.normal(0, 0.5, (7, 3)), rng.uniform(0.5, 0.9, 7)]).tolist()
        ]
    return solids


def shots(rng: np.random.Generator) -> list[Shot]:
    """``NUM_VIEWS`` photographs on an arc around the square, easy neighbours and hard extremes."""
    cloth = [
        Painter(rng, 1, 1, 40).tint(tuple(c)).shade(0.2 * rng.standard_normal()).done()
        for c in rng.uniform(0.1, 0.8, (5, 3))
    ]
    skin = Painter(rng, 1, 1, 40).tint((0.7, 0.5, 0.4)).done()
    times = rng.permutation([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 1, 2])
    bearings = np.linspace(-62, 62, NUM_VIEWS) + rng.uniform(-5, 5, NUM_VIEWS)
    photographs = []
    for k in range(NUM_VIEWS):
        angle = np.radians(bearings[k])
        distance = min(rng.uniform(9.5, 19), 9.6 / max(abs(np.sin(angle)), 0.1))
        center = TARGET + distance * np.array([np.sin(angle), -np.cos(angle), 0])
        center[2] = rng.choice([rng.uniform(1.5, 2.0), rng.uniform(3.0, 6.5)])
        aim = TARGET + rng.normal(0, 1, 3) * [1.6, 1.5, 0.5]
        width, height = SIZES[k % len(SIZES)]
        focal = rng.uniform(0.85, 1.25) * max(width, height)
        dusk = times[k] == 4
        photographs.append(
            Shot(
                _look(center, aim, rng.normal(0, 5), width, height, focal),
                int(times[k]),
                Development(
                    exposure=rng.uniform(-0.6, 0.6) - 1.6 * dusk,
                    balance=(rng.uniform(0.85, 1.2), 1.0, rng.uniform(0.8, 1.2)),
                    contrast=rng.uniform(0.9, 1.35),
                    saturation=rng.uniform(0.6, 0.95),
                    blur_px=rng.uniform(0.35, 0.8),
                    shake_px=tuple(rng.normal(0, 1.2, 2)) if k % 4 == 3 else (0.0, 0.0),
                    noise=rng.uniform(0.03, 0.06) if dusk else rng.uniform(0.008, 0.03),
                    vignette=rng.uniform(0, 0.5),
                ),
                _people(rng, center, cloth, skin),
            )
        )
    return photographs


def _look(center: Array, aim: Array, roll_deg: float, width: int, height: int, focal: float) -> View:
    """A camera at ``center`` that looks at ``aim``, the horizon tilted by ``roll_deg``."""
    forward = (aim - center) / np.linalg.norm(aim - center)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(np.radians(roll_deg)), np.sin(np.radians(roll_deg))
    R = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) @ np.stack([right, down, forward])
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return View(K, R, -R @ center, width, height)


def _people(rng: np.random.Generator, camera: Array, cloth: Sequence[Texture], skin: Texture) -> list[Solid]:
    """Three to nine passers-by, none nearer than 4 m to the camera."""
    solids: list[Solid] = []
    for _ in range(int(rng.integers(3, 10))):
        x, y = rng.uniform(-8, 8), rng.uniform(-4, 8)
        if np.hypot(x - camera[0], y - camera[1]) < 4:
            continue
        tall = rng.uniform(1.5, 1.85)
        coat, legs = (cloth[int(i)] for i in rng.integers(len(cloth), size=2))
        solids += [Column((x, y, 0), 0.16, 0.85, [legs], transient=True)]
        solids += [Column((x, y, 0.8), 0.24, tall - 1.1, [coat], transient=True)]
        solids += [Ball((x, y, tall - 0.14), 0.14, [skin], transient=True)]
    return solids


def _house(
    base: tuple[float, float, float], size: tuple[float, float, float], walls: Sequence[Texture], roof: Texture,
    stone: Texture, ridge_north: bool = False,
) -> list[Solid]:  # fmt: skip
    """A box with a plinth, a cornice and two roof slopes; the ridge runs east unless ``ridge_north``."""
    (x, y, z), (w, d, h) = base, size
    solids: list[Solid] = [Box(base, size, walls)]
    solids += [Box((x, y, z), (w + 0.3, d + 0.3, 0.6), [stone]), Box((x, y, z + h), (w + 0.7, d + 0.7, 0.35), [stone])]
    top = z + h + 0.35
    if ridge_north:
        solids += [Sheet((x + w / 2, y - d / 2, top + 0.02), (0, d, 0), (-w / 2, 0, 2.2), [roof])]
        solids += [Sheet((x - w / 2, y + d / 2, top + 0.02), (0, -d, 0), (w / 2, 0, 2.2), [roof])]
    else:
        solids += [Sheet((x + w / 2, y - d / 2, top + 0.02), (-w, 0, 0), (0, d / 2, 2.2), [roof])]
        solids += [Sheet((x - w / 2, y + d / 2, top + 0.02), (w, 0, 0), (0, -d / 2, 2.2), [roof])]
    return solids


def _stall(
    x: float, y: float, yaw: float, awning: Texture, counter: Texture, wood: Texture, rng: np.random.Generator
) -> list[Solid]:
    """A market stall: counter with goods, four posts, a slanted awning."""
    c, s = np.cos(yaw), np.sin(yaw)

    def at(dx: float, dy: float, z: float) -> tuple[float, float, float]:
        return (x + c * dx - s * dy, y + s * dx + c * dy, z)

    solids: list[Solid] = [Box(at(0, 0, 0), (2.2, 0.9, 0.85), [counter], yaw=yaw, offset=(x + 9, 0))]
    for dx in (-1.1, 1.1):
        solids += [Column(at(dx, -0.55, 0), 0.04, 2.05, [wood]), Column(at(dx, 0.55, 0), 0.04, 2.45, [wood])]
    for dx in np.linspace(-0.9, 0.9, 5):
        solids += [Ball(at(dx, rng.uniform(-0.2, 0.2), 0.97), rng.uniform(0.1, 0.17), [counter], turn=dx)]
    corner, right, low = np.array(at(-1.3, 0.65, 2.5)), at(1.3, 0.65, 2.5), at(-1.3, -0.75, 1.95)
    solids += [Sheet(tuple(corner), tuple(right - corner), tuple(low - corner), [awning])]
    return solids


def _textures(rng: np.random.Generator) -> dict[str, Texture]:
    """Every painted surface."""

    def facade(width: float, height: float, density: float) -> Painter:
        return Painter(rng, width, height, density)

    def windows(painter: Painter, columns: int, rows: int, first: float, size: tuple[float, float]) -> Painter:
        width = painter.shape[1] / painter.density
        height = painter.shape[0] / painter.density
        for row in range(rows):
            for column in range(columns):
                x = (column + 0.5) * width / columns - size[0] / 2
                y = first + row * (height - first - 0.8) / rows
                painter.window(x, y, *size, (2, int(rng.integers(2, 5))))
        return painter

    hall = windows(facade(18, 9.6, 72).masonry(0.7, 0.32, (0.70, 0.64, 0.52), 0.02), 9, 3, 0.9, (0.95, 1.6))
    hall.sign(6.2, 3.05, 5.6, 0.75, glow=0.8).door(8.1, 1.8, 2.8).door(4.2, 1.3, 2.4).door(12.4, 1.3, 2.4).scatter(4)
    brick = windows(facade(15, 8.2, 72).masonry(0.26, 0.085, (0.58, 0.30, 0.22), 0.014), 6, 3, 0.7, (1.1, 1.4))
    brick.door(6.5, 1.2, 2.3).sign(2.3, 5.4, 3.4, 0.6, 0.9).sign(9.6, 5.4, 3.0, 0.7, 0.9).scatter(7)
    east = windows(facade(14, 7.2, 72).plaster((0.80, 0.68, 0.45), 14), 5, 2, 0.8, (1.2, 1.7))
    east.sign(1.0, 3.4, 4.0, 0.7, 0.9).door(9.2, 1.3, 2.3).sign(6.6, 3.5, 2.4, 0.6, 0.9).scatter(7)
    tower = facade(4.2, 5.2, 72).masonry(0.4, 0.22, (0.60, 0.56, 0.50), 0.018).window(1.5, 3.2, 1.2, 1.6, (2, 3))
    gable = windows(facade(6, 8.2, 72).plaster((0.70, 0.56, 0.48), 8), 2, 3, 0.9, (1.1, 1.5)).scatter(3)
    gable2 = windows(facade(6, 7.2, 72).masonry(0.5, 0.25, (0.66, 0.60, 0.55), 0.02), 2, 2, 0.9, (1.2, 1.6)).scatter(3)
    back = windows(facade(8, 12, 48).plaster((0.72, 0.74, 0.76), 12), 4, 4, 0.8, (1.0, 1.6))
    back2 = windows(facade(8, 10, 48).masonry(0.3, 0.1, (0.52, 0.33, 0.26), 0.014), 4, 3, 0.8, (1.0, 1.6))
    frieze = facade(13.2, 0.7, 90).plaster((0.74, 0.70, 0.62), 4).sign(2.0, 0.12, 9.2, 0.46)
    counter = facade(4, 2, 110).rows(0.14, 1.7, (0.55, 0.42, 0.28)).posters(9)
    return {
        "hall": hall.done(),
        "brick_house": brick.done(),
        "plaster_house": east.done(),
        "tower": tower.done(),
        "gable": gable.done(),
        "gable2": gable2.done(),
        "back": back.done(),
        "back2": back2.done(),
        "frieze": frieze.done(),
        "counter": counter.done(),
        "pavers": facade(26, 28, 44).pavers(0.42).done(),
        "plain": facade(8, 8, 40).plaster((0.66, 0.60, 0.52), 8).done(),
        "roof": facade(18, 5, 40).rows(0.3, 0.24, (0.50, 0.24, 0.17)).done(),
        "stone": facade(8, 2, 60).masonry(0.9, 0.45, (0.62, 0.59, 0.54), 0.02).done(),
        "masonry": facade(14, 0.6, 90).masonry(0.35, 0.18, (0.56, 0.54, 0.50), 0.02).done(),
        "flutes": facade(2.8, 4.2, 90).flutes(0.17).done(),
        "carving": facade(5, 4, 90).plaster((0.58, 0.56, 0.52), 25).posters(5).done(),
        "pool": facade(5, 5, 40).plaster((0.16, 0.24, 0.26), 0).done(),
        "awning0": facade(2.7, 1.6, 80).stripes(0.27, ((0.75, 0.15, 0.12), (0.9, 0.88, 0.82))).done(),
        "awning1": facade(2.7, 1.6, 80).stripes(0.2, ((0.12, 0.3, 0.5), (0.88, 0.85, 0.7))).done(),
        "bills": facade(4, 3, 110).tint((0.6, 0.58, 0.5)).posters(34).done(),
        "board": facade(2.5, 1.8, 110).tint((0.5, 0.5, 0.45)).posters(12).done(),
        "wood": facade(3, 2, 90).rows(0.16, 1.3, (0.46, 0.33, 0.2)).done(),
        "crate": facade(4, 3, 100).rows(0.12, 0.9, (0.62, 0.48, 0.3)).posters(8).done(),
        "metal": facade(0.5, 4, 60).tint((0.14, 0.15, 0.14)).done(),
        "lamp": _lamp(rng),
        "leaves": facade(6, 3, 60).foliage().done(),
    }


def _lamp(rng: np.random.Generator) -> Texture:
    painter = Painter(rng, 1.3, 0.7, 40).tint((0.9, 0.9, 0.85))
    painter.glow[:] = 1.0
    return painter.done()
