from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.dev.data import find_data, open_pose_scene, resize_matrix
from kornia_hardnet8.errors import DataError, MissingFileError


def test_kinds_are_told_by_what_a_folder_holds(dev_folder: Path) -> None:
    data = find_data(dev_folder)
    assert list(data.poses) == ["poses/yard"]
    assert list(data.homography) == ["planes/wall"]
    assert {name: [p.name for p in files] for name, files in data.webcam.items()} == {
        "webcam/still": ["a.png", "b.png", "c.png"]
    }
    assert list(find_data(dev_folder / "poses").poses) == ["yard"]


def test_nothing_to_judge_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="not there"):
        find_data(tmp_path / "no")
    (tmp_path / "group" / "scene").mkdir(parents=True)
    with pytest.raises(DataError, match="nothing to judge"):
        find_data(tmp_path)


def test_model_and_camera_file_give_the_same_cameras(dev_folder: Path, tmp_path: Path) -> None:
    folder = dev_folder / "poses" / "yard"
    by_model = open_pose_scene("yard", folder, 20, 30, 0)
    (tmp_path / "images").symlink_to(folder / "images")
    (tmp_path / "cameras_KRt.txt").write_bytes((folder / "cameras_KRt.txt").read_bytes())
    by_file = open_pose_scene("yard", tmp_path, 20, 30, 0)
    assert by_model.pairs == by_file.pairs == [("v1", "v2"), ("v1", "v3"), ("v2", "v3")]
    for name, camera in by_file.cameras.items():
        np.testing.assert_allclose(camera.K[:2, 2], [159.5, 119.5])  # pixel centres at integers
        np.testing.assert_allclose(by_model.cameras[name].K, camera.K, atol=1e-9)
        np.testing.assert_allclose(by_model.cameras[name].R, camera.R, atol=1e-9)
        np.testing.assert_allclose(by_model.cameras[name].t, camera.t, atol=1e-9)


def test_pairs_need_common_points_and_are_drawn_by_seed(dev_folder: Path) -> None:
    folder = dev_folder / "poses" / "yard"
    drawn = [open_pose_scene("yard", folder, 20, 1, seed).pairs for seed in range(8)]
    assert all(len(pairs) == 1 for pairs in drawn)
    assert len({pairs[0] for pairs in drawn}) > 1
    assert drawn[0] == open_pose_scene("yard", folder, 20, 1, 0).pairs
    with pytest.raises(DataError, match="no two images"):
        open_pose_scene("yard", folder, 10**6, 30, 0)


def test_calibration_follows_a_resize(dev_folder: Path) -> None:
    scene = open_pose_scene("yard", dev_folder / "poses" / "yard", 20, 30, 0)
    whole, camera = scene.load("v1", 1024)
    half, smaller = scene.load("v1", 160)
    assert (whole.shape, half.shape) == ((240, 320), (120, 160))
    np.testing.assert_array_equal(camera.K, scene.cameras["v1"].K)
    ray = np.array([0.1, -0.2, 1.0])
    x, y, _ = camera.K @ ray
    np.testing.assert_allclose((smaller.K @ ray)[:2], [(x + 0.5) / 2 - 0.5, (y + 0.5) / 2 - 0.5])


def test_resize_matrix_moves_a_blob_as_opencv_does() -> None:
    image = np.zeros((90, 120), np.float32)
    image[40, 70] = 1.0
    image = cv2.GaussianBlur(image, (0, 0), 6)
    smaller = cv2.resize(image, (40, 45), interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[: smaller.shape[0], : smaller.shape[1]]
    found = np.array([(x * smaller).sum(), (y * smaller).sum()]) / smaller.sum()
    np.testing.assert_allclose(found, (resize_matrix(1 / 3, 0.5) @ [70, 40, 1])[:2], atol=1e-3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("v9.png 320 240 1 1", "line 2: expected name"),
        ("v9.png 320 240 300 300 160 nan 1 0 0 0 1 0 0 0 1 0 0 0", "line 2: expected name"),
        ("v9.png 320 240 300 300 160 120 1 0 0 0 1 0 0 0 1 0 0 0", "v9.png is not there"),
        ("", "names 0 image"),
    ],
)
def test_bad_camera_file(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "cameras_KRt.txt").write_text(f"# name\n{line}\n")
    with pytest.raises((DataError, MissingFileError), match=message):
        open_pose_scene("x", tmp_path, 20, 30, 0)


def test_image_of_another_size_is_refused(dev_folder: Path, tmp_path: Path) -> None:
    scene = open_pose_scene("yard", dev_folder / "poses" / "yard", 20, 30, 0)
    cv2.imwrite(str(tmp_path / "v1.png"), np.zeros((100, 100), np.uint8))
    scene.images["v1"] = tmp_path / "v1.png"
    with pytest.raises(DataError, match="100 x 100, its camera 320 x 240"):
        scene.load("v1", 1024)
