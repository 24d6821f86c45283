from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from eval.imw.scene import all_pairs, find_scenes, open_scene, read_calibration, read_keys
from kornia_hardnet8.errors import DataError, HardNet8Error, MissingFileError


@pytest.fixture
def copy(corner_scene: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corner_scene, tmp_path / "data" / "corner"))


def test_a_scene_is_found_where_it_lies(copy: Path, corner) -> None:
    for path in (copy, copy / "set_100", copy.parent, copy.parent.parent):
        (scene,) = find_scenes(path)
        assert (scene.name, scene.dataset) == ("corner", "custom")
        assert list(scene.images) == ["view_0", "view_1", "view_2", "view_3"]
    np.testing.assert_allclose(scene.cameras["view_1"].K, corner.K)
    assert scene.gray("view_1").shape == (270, 360)
    assert scene.pairs() == [(f"view_{j}", f"view_{i}") for i in range(4) for j in range(i + 1, 4)]
    assert scene.pairs("0.9") == []


def test_a_plain_folder_without_lists_is_a_scene_too(copy: Path) -> None:
    plain = copy.parent / "phototourism" / "plain"
    plain.parent.mkdir()
    (copy / "set_100").rename(plain)
    copy.rmdir()
    for name in ("images.txt", "calibration.txt", "visibility.txt"):
        (plain / name).unlink()
    (scene,) = find_scenes(copy.parent)
    assert (scene.name, scene.dataset) == ("plain", "phototourism")
    assert list(scene.images) == ["view_0", "view_1", "view_2", "view_3"]


def test_the_fingerprint_changes_with_what_results_depend_on(copy: Path) -> None:
    root = copy / "set_100"
    seen = {open_scene(copy).fingerprint}
    assert open_scene(copy).fingerprint in seen
    with open(root / "images" / "view_0.png", "ab") as file:
        file.write(b"x")
    seen.add(open_scene(copy).fingerprint)
    with h5py.File(root / "calibration" / "calibration_view_2.h5", "a") as file:
        file["T"][0] += 1e-3
    seen.add(open_scene(copy).fingerprint)
    np.save(root / "new-vis-pairs" / "keys-th-0.1.npy", np.array(["view_1-view_0"]))
    seen.add(open_scene(copy).fingerprint)
    assert len(seen) == 4


def test_calibrations_of_other_writers(tmp_path: Path) -> None:
    path = tmp_path / "calibration_a.h5"
    with h5py.File(path, "w") as file:
        file["K"], file["R"], file["T"] = np.eye(3, dtype=np.float32), np.eye(3), np.ones((3, 1))
        file["imsize"] = np.array([[4, 5]])
    assert read_calibration(path).t.shape == (3,)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("K", np.zeros((3, 3)), "focal length that is not positive"),
        ("K", np.eye(4), r"K has shape \(4, 4\), expected \(3, 3\)"),
        ("R", np.full((3, 3), np.nan), "R holds a value that is not finite"),
        ("T", np.zeros(4), r"T has shape \(4,\)"),
        ("T", None, "has no dataset 'T'"),
        ("R", "text", "must be numbers"),
    ],
)
def test_bad_calibrations_are_named(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = tmp_path / "calibration_a.h5"
    with h5py.File(path, "w") as file:
        for name, good in (("K", np.eye(3)), ("R", np.eye(3)), ("T", np.zeros(3))):
            if name != key:
                file[name] = good
            elif value is not None:
                file[name] = value
    with pytest.raises(DataError, match=message):
        read_calibration(path)


def test_lists_of_pairs_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "keys-th-0.1.npy"
    np.save(path, np.array(["b-a", "c-a"]))
    assert read_keys(path) == ["b-a", "c-a"]
    np.save(path, np.array([b"b-a"]))
    assert read_keys(path) == ["b-a"]
    np.save(path, np.array([]))
    assert read_keys(path) == []
    np.save(path, np.array(["b-a", None], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not a readable numpy array"):
        read_keys(path)
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match="expected a list of strings"):
        read_keys(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable numpy array"):
        read_keys(path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


FAULTS = {
    "no folder": (lambda s: shutil.rmtree(s.parent), MissingFileError, "is not there"),
    "no scene": (lambda s: shutil.rmtree(s / "set_100" / "calibration"), DataError, "holds no scene"),
    "a model": (
        lambda s: ((s / "set_100" / "calibration").rename(s / "sparse"), (s / "sparse" / "cameras.bin").touch()),
        DataError,
        "imw-scene",
    ),
    "one image": (
        lambda s: (s / "set_100" / "images.txt").write_text("images/view_0.png\n"),
        DataError,
        r"has 1 image\(s\), at least 2",
    ),
    "unlisted file": (
        lambda s: (s / "set_100" / "images" / "view_1.png").unlink(),
        MissingFileError,
        r"1 of 4 images are not there: .*view_1\.png",
    ),
    "dash": (
        lambda s: (s / "set_100" / "images.txt").write_text("images/a-b.png\nimages/c.png\n"),
        DataError,
        "holds '-'",
    ),
    "twice": (
        lambda s: (s / "set_100" / "images.txt").write_text("images/a.png\nimages/a.jpg\n"),
        DataError,
        "two images are called 'a'",
    ),
    "no calibration": (
        lambda s: (s / "set_100" / "calibration" / "calibration_view_3.h5").unlink(),
        MissingFileError,
        r"1 images have no calibration: .*view_3\.h5",
    ),
    "cut calibration": (
        lambda s: _cut(s / "set_100" / "calibration" / "calibration_view_3.h5"),
        DataError,
        r"calibration_view_3\.h5 is damaged",
    ),
    "no pairs": (
        lambda s: (s / "set_100" / "new-vis-pairs" / "keys-th-0.1.npy").unlink(),
        MissingFileError,
        r"keys-th-0\.1\.npy is not there",
    ),
    "unknown image": (
        lambda s: np.save(s / "set_100" / "new-vis-pairs" / "keys-th-0.1.npy", np.array(["x-view_0"])),
        DataError,
        r"keys-th-0\.1\.npy: 'x-view_0' names the image 'x'",
    ),
    "wrong order": (
        lambda s: np.save(s / "set_100" / "new-vis-pairs" / "keys-th-0.1.npy", np.array(["view_0-view_1"])),
        DataError,
        "larger name first",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_scene_are_named(fault: str, copy: Path) -> None:
    break_it, kind, message = FAULTS[fault]
    break_it(copy)
    with pytest.raises(kind, match=message) as caught:
        (scene,) = find_scenes(copy)
        assert scene.cameras
        scene.pairs("0.1")
    assert isinstance(caught.value, HardNet8Error)
    assert "\n" not in str(caught.value)


def test_two_scenes_of_one_name_are_refused(copy: Path) -> None:
    data = copy.parent
    for folder in ("first", "second"):
        shutil.copytree(copy, data / folder / "corner")
    shutil.rmtree(copy)
    with pytest.raises(DataError, match="several scenes called 'corner'"):
        find_scenes(data)


def test_all_pairs_have_the_larger_name_first() -> None:
    assert all_pairs(["b", "a", "c"]) == [("b", "a"), ("c", "b"), ("c", "a")]
