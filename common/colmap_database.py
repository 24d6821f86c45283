"""COLMAP databases of others, read and never written.

COLMAP itself upgrades every database that it opens, so it is given a copy, and what is read here is read by SQLite.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kornia_hardnet8.errors import DataError, MissingFileError

_PAIR = 2147483647  # COLMAP's: the number of a pair is first * this + second
_MOST_BYTES = 256 << 20  # of one value: the descriptors of two million keypoints


class Database(NamedTuple):
    """An open database; see :func:`open_database`."""

    path: Path
    connection: sqlite3.Connection

    def image_ids(self) -> dict[str, int]:
        """Number of each image by its name."""
        return {str(name): int(number) for number, name in self.connection.execute("SELECT image_id, name FROM images")}

    def keypoints(self, image_id: int) -> NDArray[np.float32]:
        """The keypoints (n, 2 or 4 or 6) of an image: x, y with the origin at the corner, then scale and shape.

        Raises:
            DataError: an entry that is not what its own counts say, or no number.
        """
        query = "SELECT rows, cols, data FROM keypoints WHERE image_id = ?"
        row = self.connection.execute(query, (image_id,)).fetchone()
        count, columns, content = (0, 2, b"") if row is None else row
        content = b"" if content is None else content
        if columns not in (2, 4, 6) or not _holds(content, count, 4 * columns):
            raise DataError(f"{self.path}: the keypoints of image {image_id} are damaged")
        keypoints = np.frombuffer(content, np.float32).reshape(count, columns)
        if not np.isfinite(keypoints).all():
            raise DataError(f"{self.path}: image {image_id} has a keypoint that is not finite")
        return keypoints

    def count(self, image_id: int) -> int:
        """How many keypoints an image has, by its own word."""
        row = self.connection.execute("SELECT rows FROM keypoints WHERE image_id = ?", (image_id,)).fetchone()
        return 0 if row is None else row[0] if isinstance(row[0], int) else -1

    def check_mappable(self) -> None:
        """Raise a DataError for what COLMAP's mapper stops at in the middle of the work."""
        tables = {name for (name,) in self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not self.connection.execute("SELECT COUNT(*) FROM two_view_geometries WHERE rows > 0").fetchone()[0]:
            raise DataError(f"{self.path} holds no verified matches: there is nothing to map")
        if {"frames", "frame_data"} <= tables and self.connection.execute("SELECT COUNT(*) FROM frames").fetchone()[0]:
            lost = self.connection.execute(
                "SELECT name FROM images WHERE image_id NOT IN (SELECT data_id FROM frame_data WHERE sensor_type = 0)"
            ).fetchall()
            if lost:
                raise DataError(
                    f"{self.path}: {len(lost)} image(s) belong to no frame although the database has frames: "
                    f"{lost[0][0]} …; add them by COLMAP, or give each a frame"
                )
        ids = [number for (number,) in self.connection.execute("SELECT image_id FROM keypoints")]
        counts = {number: len(self.keypoints(number)) for number in ids}
        for pair, rows, columns, content in self.connection.execute(
            "SELECT pair_id, rows, cols, data FROM two_view_geometries WHERE rows > 0"
        ):
            a, b = divmod(pair, _PAIR)
            if columns != 2 or not _holds(content, rows, 8):
                raise DataError(f"{self.path}: the matches of the images {a} and {b} are damaged")
            most = np.frombuffer(content, np.uint32).reshape(rows, 2).max(axis=0)
            if any(row >= counts.get(number, 0) for row, number in zip(most.tolist(), (a, b), strict=True)):
                raise DataError(f"{self.path}: the matches of the images {a} and {b} name keypoints that are not there")


@contextmanager
def open_database(path: Path) -> Iterator[Database]:
    """Open a database of any version of COLMAP for reading. Neither it nor its folder is changed.

    Raises:
        MissingFileError: it is not there.
        DataError: it is no COLMAP database; whatever SQLite finds wrong with it in the block is one too.
    """
    if not path.is_file():
        raise MissingFileError(f"database {path} is not there")
    with _still(path) as still:
        try:
            # nobody writes to it, so SQLite needs no lock beside it
            with closing(sqlite3.connect(f"{still.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
                tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                if not {"cameras", "images", "keypoints", "two_view_geometries"} <= tables:
                    raise DataError(f"{path} is no COLMAP database: it lacks tables")
                yield Database(path, connection)
        except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is no COLMAP database, or damaged: {error}") from None


def _holds(content: object, rows: object, row_bytes: int) -> bool:
    """Whether a value is that many rows of that many bytes."""
    return isinstance(content, bytes) and isinstance(rows, int) and len(content) == rows * row_bytes


def copy_database(path: Path, to: Path) -> None:
    """Copy a database to a new file: what its log still holds goes with it.

    Raises:
        DataError: it is no database.
        OSError: no room for the copy.
    """
    with open_database(path) as database, closing(sqlite3.connect(to)) as copy:
        try:
            database.connection.backup(copy)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname not in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(to)) from None


def has_scales(path: Path) -> bool:
    """Whether the keypoints of a database come with scales and orientations."""
    with open_database(path) as database:
        query = "SELECT COUNT(*) FROM keypoints WHERE rows > 0 AND cols < 4"
        return database.connection.execute(query).fetchone() == (0,)


@contextmanager
def _still(path: Path) -> Iterator[Path]:
    """The database, or a copy of it that its log was written into."""
    log = path.with_name(f"{path.name}-wal")
    if not log.is_file() or not log.stat().st_size:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "database.db"
        shutil.copyfile(path, copy)
        shutil.copyfile(log, f"{copy}-wal")
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        yield copy
