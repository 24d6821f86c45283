from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from common.colmap_database import copy_database, has_scales, open_database
from kornia_hardnet8.errors import DataError, MissingFileError
from tests.common.colmap_files import NAMES, Tiny, state


@pytest.mark.parametrize("columns", [2, 4, 6])
def test_values_and_nothing_is_written(columns: int, tmp_path: Path) -> None:
    path = Tiny().database(tmp_path / "database.db", columns)
    path.chmod(0o444)
    before = state(tmp_path)
    with open_database(path) as database:
        database.check_mappable()
        assert database.image_ids() == dict(zip(NAMES, (1, 2, 3), strict=True))
        keypoints = database.keypoints(1)
        assert database.keypoints(99).shape == (0, 2)
    assert keypoints.shape == (3, columns)
    np.testing.assert_array_equal(keypoints[:, :2], [[10, 11], [20, 21], [30.25, 31]])
    assert has_scales(path) == (columns > 2)
    assert state(tmp_path) == before


def test_what_colmap_writes_is_read(tmp_path: Path) -> None:
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        camera = database.write_camera(pycolmap.Camera(model="PINHOLE", width=64, height=48, params=[60, 60, 32, 24]))
        image = database.write_image(pycolmap.Image(name="a.png", camera_id=camera))
        keypoints = np.arange(12, dtype=np.float32).reshape(2, 6)
        database.write_keypoints(image, keypoints)
    with open_database(tmp_path / "database.db") as ours:
        assert ours.image_ids() == {"a.png": image}
        np.testing.assert_array_equal(ours.keypoints(image), keypoints)


def test_what_a_log_holds_is_read_and_the_log_stays(tmp_path: Path) -> None:
    path = Tiny().database(tmp_path / "database.db")
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("UPDATE images SET name = 'new.png' WHERE image_id = 1")
        writer.commit()
        assert (tmp_path / "database.db-wal").stat().st_size
        before = state(tmp_path)
        with open_database(path) as database:
            assert "new.png" in database.image_ids()
        copy_database(path, tmp_path.parent / f"{tmp_path.name}.db")
        assert state(tmp_path) == before
    with open_database(tmp_path.parent / f"{tmp_path.name}.db") as database:
        assert "new.png" in database.image_ids()


def change(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as link:
        for statement in statements:
            link.execute(statement)
        link.commit()
    return path


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE keypoints SET rows = 1000000000", "keypoints of image 1 are damaged"),
        ("UPDATE keypoints SET rows = -1", "keypoints of image 1 are damaged"),
        ("UPDATE keypoints SET cols = 5", "keypoints of image 1 are damaged"),
        ("UPDATE keypoints SET data = 'text'", "keypoints of image 1 are damaged"),
        ("DELETE FROM two_view_geometries", "no verified matches"),
        ("UPDATE two_view_geometries SET data = x'00'", "matches of the images 1 and 2 are damaged"),
        ("DELETE FROM keypoints WHERE image_id = 2", "images 1 and 2 name keypoints that are not there"),
        ("DROP TABLE images", "it lacks tables"),
    ],
)
def test_damage_is_one_line(statement: str, message: str, tmp_path: Path) -> None:
    path = change(Tiny().database(tmp_path / "database.db"), statement)
    with pytest.raises(DataError, match=message), open_database(path) as database:
        database.keypoints(1)
        database.check_mappable()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE keypoints SET data = x'00' WHERE image_id = 3", "keypoints of image 3 are damaged"),
        ("UPDATE keypoints SET rows = 1.5 WHERE image_id = 3", "keypoints of image 3 are damaged"),
        ("UPDATE two_view_geometries SET rows = 1.5", "matches of the images 1 and 2 are damaged"),
    ],
)
def test_what_the_mapper_reads_is_checked(statement: str, message: str, tmp_path: Path) -> None:
    path = change(Tiny().database(tmp_path / "database.db"), statement)
    with pytest.raises(DataError, match=message), open_database(path) as database:
        database.check_mappable()


def test_values_that_no_image_needs_are_not_read(tmp_path: Path) -> None:
    path = change(Tiny().database(tmp_path / "database.db"), f"UPDATE keypoints SET data = zeroblob({257 << 20})")
    with pytest.raises(DataError, match="string or blob too big"), open_database(path) as database:
        database.keypoints(1)


def test_a_keypoint_that_is_not_finite(tmp_path: Path) -> None:
    tiny = Tiny()
    tiny.seen[0][0] = (float("nan"), 11, 7)
    with (
        pytest.raises(DataError, match="image 1 has a keypoint that is not finite"),
        open_database(tiny.database(tmp_path / "database.db")) as database,
    ):
        database.keypoints(1)


def test_an_image_without_a_frame(tmp_path: Path) -> None:
    path = change(
        Tiny().database(tmp_path / "database.db"),
        "CREATE TABLE frames (frame_id INTEGER, rig_id INTEGER)",
        "CREATE TABLE frame_data (frame_id INTEGER, data_id INTEGER, sensor_id INTEGER, sensor_type INTEGER)",
    )
    with open_database(path) as database:
        database.check_mappable()  # tables that are empty say nothing
    change(path, "INSERT INTO frames VALUES (1, 1)", "INSERT INTO frame_data VALUES (1, 1, 1, 0), (1, 2, 1, 0)")
    with pytest.raises(DataError, match=r"1 image\(s\) belong to no frame .* sub/c d\.png"), open_database(path) as db:
        db.check_mappable()


def test_no_room_for_a_copy_is_no_fault_of_the_database(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = Tiny().database(tmp_path / "database.db")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"No space left on device: '.*copy\.db'"):
            copy_database(path, tmp_path / "copy.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"), open_database(tmp_path / "nowhere"):
        pass
    for content in (b"", b"not a database at all", b"SQLite format 3\0" + bytes(200)):
        (tmp_path / "x.db").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.db is no COLMAP database"), open_database(tmp_path / "x.db"):
            pass


def test_a_view_that_computes_is_no_table(tmp_path: Path) -> None:
    path = change(
        Tiny().database(tmp_path / "database.db"),
        "DROP TABLE images",
        "CREATE VIEW images AS SELECT 1 AS image_id, 'b.png' AS name, 1 AS camera_id",
    )
    with pytest.raises(DataError, match="it lacks tables"), open_database(path):
        pass


def test_counts_are_read_without_the_data(tmp_path: Path) -> None:
    path = Tiny().database(tmp_path / "database.db")
    with open_database(path) as database:
        assert [database.count(number) for number in (1, 2, 3, 4)] == [3, 1, 2, 0]
    change(path, "UPDATE keypoints SET rows = 'many'")
    with open_database(path) as database:
        assert database.count(1) == -1


def test_any_damage_is_one_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = Tiny().database(tmp_path / "database.db")
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(150):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 30)] = rng.integers(0, 256, 30)
        path.write_bytes(damaged[: rng.integers(len(whole) // 2, len(whole) + 1)].tobytes())
        try:
            with open_database(path) as database:
                database.check_mappable()
                for number in database.image_ids().values():
                    database.keypoints(number)
        except DataError as error:
            assert "\n" not in str(error)
