from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.colmap import load_pycolmap
from common.colmap_worker import extract_sift, import_images, sqlite_errors
from kornia_hardnet8.errors import DataError
from tests.common.colmap_files import Tiny

resource = pytest.importorskip("resource")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that is full: what is longer than this many bytes is not written, by no process started here."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    Tiny().pictures(tmp_path / "images")
    path = tmp_path / "database.db"
    load_pycolmap().Database.open(path).close()
    return path


def names(database: Path) -> list[str]:
    with load_pycolmap().Database.open(database) as opened:
        return sorted(image.name for image in opened.read_all_images())


def test_images_come_in_by_a_process_of_its_own(database: Path) -> None:
    import_images(database, database.parent / "images", "SINGLE", Tiny().names, {"camera_model": "RADIAL"})
    assert names(database) == sorted(Tiny().names)
    assert len(list(extract_sift(database, database.parent / "images", [["b.png"], Tiny().names[1:]], 100, 1))) == 2
    with load_pycolmap().Database.open(database) as opened:
        assert len(opened.read_keypoints(1)) > 0
        assert len(opened.read_all_cameras()) == 1


def test_a_full_disk_is_one_line(database: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = database.parent / "images"
    with files_of_at_most(5000), pytest.raises(DataError, match=r"cannot write its database in .*is the disk full\?"):
        import_images(database, images, "PER_IMAGE", Tiny().names, {})
    with files_of_at_most(5000), pytest.raises(DataError, match=r"cannot write its database in .*is the disk full\?"):
        list(extract_sift(database, images, [Tiny().names], 100, 1))
    assert capfd.readouterr().err == ""


def test_errors_of_sqlite_are_one_line(tmp_path: Path) -> None:
    for error in (sqlite3.OperationalError("disk I/O error"), RuntimeError("[file.cc:1] SQLite error: disk I/O error")):
        with (
            pytest.raises(DataError, match=r"is the disk full\?\): SQLite error: disk I/O error"),
            sqlite_errors(tmp_path),
        ):
            raise error
    with pytest.raises(DataError, match=r"COLMAP failed in .*: a bad lens"), sqlite_errors(tmp_path):
        raise ValueError("a bad lens")
