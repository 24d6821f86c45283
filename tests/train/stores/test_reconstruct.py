"""Models made from photographs: a rendered corner of two walls, and databases with perfect matches."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
import torch

from common.folders import claimed
from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError, MissingFileError
from train.cli import main
from train.stores.colmap import build_colmap, random_points
from train.stores.colmap_model import load_observations
from train.stores.frames import inside_share
from train.stores.reconstruct import keep_largest, map_database, match_mutual, reconstruct

WIDTH, HEIGHT, FOCAL = 400, 300, 380.0


def _look_at(centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World-to-camera pose from ``centre`` towards the origin, y down."""
    forward = -centre / np.linalg.norm(centre)
    right = np.cross([0, 1.0, 0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return rotation, -rotation @ centre


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, textures) -> Path:
    """Four pictures of a convex corner whose edge is the y axis, one of them turned by a right angle."""
    folder = tmp_path_factory.mktemp("corner") / "images"
    folder.mkdir()
    calibration = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    walls = [textures(400, 400, seed=seed, finest=3.0) for seed in (1, 2)]
    for number, degrees in enumerate((-15, -5, 5, 15)):
        angle = np.deg2rad(degrees)
        rotation, shift = _look_at(np.array([4.2 * np.sin(angle), -0.5, -4.2 * np.cos(angle)]))
        picture = np.zeros((HEIGHT, WIDTH), np.float32)
        for wall, side in zip(walls, (-1.0, 1.0), strict=True):
            # texture (u, v) in 0 … 400: along the wall away from the edge, and down
            axes = np.array([[side * 0.8, 0, 0.8], [0, 1, 0]]).T / 100
            plane = np.column_stack([rotation @ axes, rotation @ [0, -2.0, 0] + shift])
            homography = calibration @ plane
            shown = cv2.warpPerspective(wall, homography, (WIDTH, HEIGHT), flags=cv2.INTER_AREA)
            there = cv2.warpPerspective(np.ones_like(wall), homography, (WIDTH, HEIGHT))
            picture = np.where(there > 0.5, shown, picture)
        if number == 2:  # held upright: only turned patches fit
            picture = cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE)
        cv2.imwrite(str(folder / f"view_{number}.png"), np.clip(np.rint(picture), 0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def built(photographs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "store"
    line = ["build", "colmap", "--images", str(photographs), "--out", str(out), "--num-workers", "0", "-q"]
    assert main([*line, "--max-keypoints", "600"]) == 0
    return out


def test_photographs_become_patches(built: Path, correlate) -> None:
    """Patches of one point correlate, which needs the right matches, scales and turns.

    Walls seen at an angle shrink one way alone, which similarity frames do not undo: correlations are not near 1.
    """
    store = PatchStore.open(built)
    assert len(np.unique(store.image_ids)) == 4
    assert store.meta["num_labels"] > 60
    labels = np.asarray(store.labels)
    first, second = np.nonzero(np.triu(labels[:, None] == labels[None], k=1))
    whole = inside_share(store.frames, HEIGHT, HEIGHT) == 1  # in pictures of either format
    first, second = first[whole[first] & whole[second]], second[whole[first] & whole[second]]
    plain = store.patches[:, 11:-11, 11:-11]
    assert len(first) > 60
    assert np.median(correlate(plain[first], plain[second])) > 0.65
    assert np.median(correlate(plain[first], plain[np.roll(second, 7)])) < 0.2


def test_keypoints_are_no_more_than_asked_for(built: Path, photographs: Path, tmp_path: Path) -> None:
    """COLMAP keeps whole levels: here up to 1.5 times what it is asked for."""
    with pycolmap.Database.open(built.with_name("store.colmap") / "database.db") as database:
        images = database.read_all_images()
        counts = [database.num_keypoints_for_image(image.image_id) for image in images]
        assert counts == [database.num_descriptors_for_image(image.image_id) for image in images]
    assert max(counts) == 600
    path = tmp_path / "plain.db"
    options = pycolmap.FeatureExtractionOptions()
    options.sift.max_num_features, options.sift.max_num_orientations = 100, 1
    pycolmap.extract_features(str(path), str(photographs), extraction_options=options, device=pycolmap.Device.cpu)

    def content() -> tuple[np.ndarray, np.ndarray]:
        with pycolmap.Database.open(path) as database:
            (image, *_) = sorted(database.read_all_images(), key=lambda item: item.name)
            return database.read_keypoints(image.image_id), database.read_descriptors(image.image_id).data

    (kpts, descs), _ = content(), keep_largest(path, 100)
    assert len(kpts) > 100
    kept_kpts, kept_descs = content()
    scales = np.linalg.norm(kpts[:, [2, 4]], axis=1)
    rows = np.sort(np.argsort(-scales, kind="stable")[:100])
    np.testing.assert_array_equal(kept_kpts, kpts[rows])
    np.testing.assert_array_equal(kept_descs, descs[rows])


def test_large_photographs_are_said_to_be_shrunk(photographs: Path, tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("train.stores.reconstruct.COLMAP_SIDE_PX", 350)
    with pytest.raises(DataError):
        reconstruct(photographs, tmp_path / "work", max_keypoints=16)
    assert "4 of 4 photographs have more than 350 pixels a side" in caplog.text
    assert "view_0.png" in caplog.text


def test_pictures_that_cannot_be_used_do_not_stop_the_others(photographs: Path, tmp_path: Path, caplog) -> None:
    images = Path(shutil.copytree(photographs, tmp_path / "images"))
    for k in (0, 1):
        (images / f"view_{k}.png").unlink()
    cv2.imwrite(str(images / "c.webp"), np.zeros((9, 9), np.uint8))
    (images / "d.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    reconstruct(images, tmp_path / "work", max_keypoints=600)
    assert "left out: image" in caplog.text and "c.webp is of a format that COLMAP does not read" in caplog.text
    assert "d.png does not decode" in caplog.text
    (images / "view_2.png").unlink()
    with pytest.raises(DataError, match="holds 1 image"):
        reconstruct(images, tmp_path / "other")


def test_two_photographs_make_a_model(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pair"
    folder.mkdir()
    for number in (0, 3):
        shutil.copy(photographs / f"view_{number}.png", folder)
    model = pycolmap.Reconstruction(reconstruct(folder, tmp_path / "work"))
    assert model.num_reg_images() == 2
    assert model.num_points3D() > 50


def test_what_is_done_is_not_done_again(built: Path, photographs: Path, tmp_path: Path, monkeypatch) -> None:
    work = tmp_path / "work"
    shutil.copytree(built.with_name("store.colmap"), work)
    monkeypatch.setattr(pycolmap, "extract_features", None)
    monkeypatch.setattr(pycolmap, "incremental_mapping", None)
    model = reconstruct(photographs, work, max_keypoints=600)
    assert model == work / "sparse" / "0"
    with pytest.raises(DataError, match="other images or settings"):
        reconstruct(photographs, work, max_keypoints=500)
    line = ["build", "colmap", "--images", str(photographs), "--out", str(built), "--num-workers", "0"]
    assert main(line) == 1  # the store is there: nothing is reconstructed in vain


def test_denser_labels_follow_a_reconstruction(built: Path, photographs: Path, tmp_path: Path, capsys) -> None:
    work = tmp_path / "work"
    shutil.copytree(built.with_name("store.colmap"), work)
    line = ["build", "colmap", "--images", str(photographs), "--dense", "--num-workers", "0", "-q"]
    mapped = [*line, "--work", str(work), "--max-keypoints", "600"]
    assert main([*mapped, "--out", str(tmp_path / "dense")]) == 0
    few, many = PatchStore.open(built), PatchStore.open(tmp_path / "dense")
    assert many.meta["num_labels"] > 2 * few.meta["num_labels"]
    again = [*line, "--model", str(work / "database.db"), "--work", str(work), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    assert (tmp_path / "again" / "labels.npy").read_bytes() == (tmp_path / "dense" / "labels.npy").read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [["--dense", "--crop", "fixed"], ["--dense", "--features", "f.h5"], ["--max-patches", "1"]],
)
def test_wrong_flags_are_refused_before_anything_is_reconstructed(
    photographs: Path, tmp_path: Path, wrong: list[str], capsys
) -> None:
    assert main(["build", "colmap", "--images", str(photographs), "--out", str(tmp_path / "store"), *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_database_is_mapped_again(built: Path, photographs: Path, tmp_path: Path, monkeypatch) -> None:
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    for copy in (first, second):
        shutil.copy(built.with_name("store.colmap") / "database.db", copy)
    model = pycolmap.Reconstruction(str(map_database(photographs, first, tmp_path / "sparse")))
    assert model.num_reg_images() == 4
    with pycolmap.Database.open(str(second)) as database:  # the last photograph matches nothing here
        last = max(image.image_id for image in database.read_all_images())
        for other in range(1, last):
            database.delete_two_view_geometry(other, last)
    model = pycolmap.Reconstruction(str(map_database(photographs, second, tmp_path / "sparse")))
    assert model.num_reg_images() == 3
    with monkeypatch.context() as patch:  # not again for the same one
        patch.setattr(pycolmap, "incremental_mapping", None)
        map_database(photographs, second, tmp_path / "sparse")
    foreign = tmp_path / "foreign"
    shutil.copytree(tmp_path / "sparse" / "0", foreign / "0")
    with pytest.raises(DataError, match="is not known from which database"):
        map_database(photographs, first, foreign)
    assert (foreign / "0" / "images.bin").is_file()


def test_the_same_matches_give_the_same_model(built: Path, photographs: Path, tmp_path: Path) -> None:
    """Mapped again from the database, which also lends scales; its text form is read alike."""
    database = built.with_name("store.colmap") / "database.db"
    assert main(["build", "colmap", "--images", str(photographs), "--model", str(database), "--out",
                 str(tmp_path / "again"), "--num-workers", "0", "-q"]) == 0  # fmt: skip
    for name in ("patches.npy", "labels.npy", "frames.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (built / name).read_bytes(), name
    text = tmp_path / "text"
    text.mkdir()
    pycolmap.Reconstruction(str(tmp_path / "again.colmap" / "sparse" / "0")).write_text(str(text))
    build_colmap(photographs, text, tmp_path / "from_text", features=database)
    assert (tmp_path / "from_text" / "labels.npy").read_bytes() == (built / "labels.npy").read_bytes()
    # positions in text are rounded
    frames = [np.load(tmp_path / store / "frames.npy") for store in ("again", "from_text")]
    np.testing.assert_allclose(frames[0], frames[1], atol=1e-3)


def test_own_descriptors_find_the_matches_too(photographs: Path, tmp_path: Path) -> None:
    model = reconstruct(photographs, tmp_path / "work", descriptor="h8E512", max_keypoints=250)
    found = pycolmap.Reconstruction(str(model))
    assert found.num_reg_images() == 4
    assert found.num_points3D() > 25
    assert len(list((tmp_path / "work" / "descriptors").iterdir())) == 4


def test_a_database_of_other_keypoints_is_not_taken_by_itself(scene, built: Path, tmp_path: Path) -> None:
    shutil.copytree(scene.model, tmp_path / "model")
    other = built.with_name("store.colmap") / "database.db"
    shutil.copy(other, tmp_path / "database.db")
    assert all(view.sigma is None for view in load_observations(scene.images, tmp_path / "model"))
    with pytest.raises(DataError, match=r"database\.db has no image"):
        load_observations(scene.images, tmp_path / "model", tmp_path / "database.db")
    (tmp_path / "database.db").write_bytes(b"no database, certainly" * 100)
    with pytest.raises(DataError, match="is no COLMAP database"):
        load_observations(scene.images, tmp_path / "model", tmp_path / "database.db")


def test_one_process_at_a_time_maps_a_database(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pycolmap.Database.open(str(tmp_path / "empty.db")).close()
    line = ["build", "colmap", "--images", str(photographs), "--model", str(tmp_path / "empty.db")]
    line += ["--out", str(tmp_path / "store")]
    with claimed(tmp_path / "store.colmap"):
        assert main(line) == 1
    assert "store.colmap is being written by another process" in capsys.readouterr().err
    assert main(line) == 1
    assert "no verified matches" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]


def test_what_cannot_be_mapped_is_said(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="is not there"):
        map_database(photographs, tmp_path / "no.db", tmp_path / "out")
    pycolmap.Database.open(str(tmp_path / "empty.db")).close()
    with pytest.raises(DataError, match="no verified matches"):
        map_database(photographs, tmp_path / "empty.db", tmp_path / "out")
    single = tmp_path / "single"
    single.mkdir()
    shutil.copy(next(photographs.iterdir()), single)
    with pytest.raises(DataError, match="at least 2"):
        reconstruct(single, tmp_path / "work")


def test_matches_are_mutual_and_distinct() -> None:
    descs = torch.eye(8)
    assert match_mutual(descs[:4], descs[[2, 0, 5]]).tolist() == [[0, 1], [2, 0]]
    assert match_mutual(descs[:1], descs).shape == (0, 2)
    twins = torch.cat([descs[:3] + 0.1 * descs[7], descs[:3] - 0.1 * descs[7]])
    assert match_mutual(descs[:3], twins).shape == (0, 2)  # each has a rival as near


def test_points_are_kept_whole() -> None:
    points, counts = np.array([3, 8, 9, 40, 41]), np.array([2, 3, 2, 5, 4])
    for seed in range(5):
        kept = random_points(points, counts, 9, seed)
        assert counts[np.isin(points, kept)].sum() <= 9
        assert list(kept) == sorted(kept)
        assert len(kept)
    assert random_points(points, counts, 16, 0).tolist() == points.tolist()
