"""Tiny COLMAP models and databases for the tests of their readers, written by hand."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

NAMES = ("b.png", "a ä.png", "sub/c d.png")
HALF = 0.5**0.5


@dataclass
class Tiny:
    """Three images of 64 x 48 pixels by one camera, and three points; fields are damaged by tests."""

    camera: tuple[str, int, list[float]] = ("PINHOLE", 1, [60.0, 61.0, 32.0, 24.0])
    size: tuple[int, int] = (64, 48)
    names: list[str] = field(default_factory=lambda: list(NAMES))
    poses: list[list[float]] = field(
        default_factory=lambda: [[1, 0, 0, 0, 0, 0, 0], [HALF, 0, HALF, 0, 1, 2, 3], [HALF, 0, 0, -HALF, -1.5, 0, 0]]
    )
    seen: list[list[tuple[float, float, int]]] = field(
        default_factory=lambda: [[(10, 11, 7), (20, 21, -1), (30.25, 31, 9)], [(5, 6, 7)], [(8, 9, 9), (1, 2, 7)]]
    )
    points: dict[int, list[float]] = field(default_factory=lambda: {9: [0, 0, 5], 7: [1, 0.5, 4], 12: [0, 0, 1]})

    def tracks(self, point: int) -> list[tuple[int, int]]:
        """(image, row) of a point."""
        return [(k, r) for k, rows in enumerate(self.seen, 1) for r, row in enumerate(rows) if row[2] == point]

    def binary(self, folder: Path) -> Path:
        """Write the three ``.bin`` files."""
        folder.mkdir(parents=True, exist_ok=True)
        _, number, params = self.camera
        content = struct.pack(f"<QIiQQ{len(params)}d", 1, 1, number, *self.size, *params)
        (folder / "cameras.bin").write_bytes(content)
        content = struct.pack("<Q", len(self.names))
        for k, (name, pose, rows) in enumerate(zip(self.names, self.poses, self.seen, strict=True), 1):
            content += struct.pack("<I7dI", k, *pose, 1) + name.encode() + b"\0" + struct.pack("<Q", len(rows))
            content += b"".join(struct.pack("<ddQ", x, y, p % 2**64) for x, y, p in rows)
        (folder / "images.bin").write_bytes(content)
        content = struct.pack("<Q", len(self.points))
        for point, xyz in self.points.items():
            content += struct.pack("<Q3d3BdQ", point, *xyz, 1, 2, 3, 0.5, len(self.tracks(point)))
            content += b"".join(struct.pack("<II", *entry) for entry in self.tracks(point))
        (folder / "points3D.bin").write_bytes(content)
        return folder

    def text(self, folder: Path, second_lines: bool = True, newline: str = "\n") -> Path:
        """Write the three ``.txt`` files."""
        folder.mkdir(parents=True, exist_ok=True)
        kind, _, params = self.camera
        lines = ["# a comment", " ".join(map(str, [1, kind, *self.size, *params]))]
        (folder / "cameras.txt").write_bytes(newline.join([*lines, ""]).encode())
        lines = ["# a comment"]
        for k, (name, pose, rows) in enumerate(zip(self.names, self.poses, self.seen, strict=True), 1):
            lines.append(" ".join(map(repr, [k, *map(float, pose), 1])) + f" {name}")
            if rows or second_lines:
                lines.append(" ".join(f"{x} {y} {p}" for x, y, p in rows))
        (folder / "images.txt").write_bytes(newline.join([*lines, ""]).encode())
        lines = []
        for point, xyz in self.points.items():
            track = [number for entry in self.tracks(point) for number in entry]
            lines.append(" ".join(map(str, [point, *xyz, 1, 2, 3, 0.5, *track])))
        (folder / "points3D.txt").write_bytes(newline.join([*lines, ""]).encode())
        return folder

    def pictures(self, folder: Path) -> Path:
        """Write images of noise."""
        rng = np.random.default_rng(0)
        for name in self.names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (self.size[1], self.size[0], 3)).astype(np.uint8)
            (folder / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        return folder

    def database(self, path: Path, columns: int = 4) -> Path:
        """Write a database as COLMAP 3.8 did, with matches of the points that two images see."""
        with closing(sqlite3.connect(path)) as link:
            link.executescript(SCHEMA)
            params = np.array(self.camera[2], np.float64).tobytes()
            link.execute("insert into cameras values (1, ?, ?, ?, ?, 1)", (self.camera[1], *self.size, params))
            for k, (name, rows) in enumerate(zip(self.names, self.seen, strict=True), 1):
                link.execute("insert into images (image_id, name, camera_id) values (?, ?, 1)", (k, name))
                shape = {2: [], 4: [3.0, 0.4], 6: [3.0, 0, 0, 3.0]}[columns]
                data = np.array([[x, y, *shape] for x, y, _ in rows], np.float32)
                link.execute("insert into keypoints values (?, ?, ?, ?)", (k, *data.shape, data.tobytes()))
            for a in range(3):
                for b in range(a + 1, 3):
                    points = [p for *_, p in self.seen[b]]
                    pairs = [(r, points.index(p)) for r, (*_, p) in enumerate(self.seen[a]) if p in points]
                    data = np.array(pairs, np.uint32)
                    link.execute(
                        "insert into two_view_geometries (pair_id, rows, cols, data, config) values (?, ?, 2, ?, 2)",
                        ((a + 1) * 2147483647 + b + 1, len(pairs), data.tobytes()),
                    )
            link.commit()
        return path


SCHEMA = """
CREATE TABLE cameras (camera_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, model INTEGER NOT NULL,
  width INTEGER NOT NULL, height INTEGER NOT NULL, params BLOB, prior_focal_length INTEGER NOT NULL);
CREATE TABLE images (image_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, name TEXT NOT NULL UNIQUE,
  camera_id INTEGER NOT NULL, prior_qw REAL, prior_qx REAL, prior_qy REAL, prior_qz REAL, prior_tx REAL, prior_ty REAL,
  prior_tz REAL);
CREATE TABLE keypoints (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL, cols INTEGER NOT NULL, data BLOB);
CREATE TABLE descriptors (image_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL, cols INTEGER NOT NULL,
  data BLOB);
CREATE TABLE matches (pair_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL, cols INTEGER NOT NULL, data BLOB);
CREATE TABLE two_view_geometries (pair_id INTEGER PRIMARY KEY NOT NULL, rows INTEGER NOT NULL, cols INTEGER NOT NULL,
  data BLOB, config INTEGER NOT NULL, F BLOB, E BLOB, H BLOB, qvec BLOB, tvec BLOB);
"""


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
