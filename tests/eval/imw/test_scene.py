from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from eval.imw.scene import all_pairs, find_scenes, open_scene, read_calibration, read_depth, read_keys
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
        ("K", np.ones((3, 3)), "K is no calibration"),
        ("R", 2 * np.eye(3), "R is no rotation"),
        ("R", -np.eye(3), "R is no rotation"),
        ("K", np.eye(4), r"K has shape \(4, 4\), expected \(3, 3\)"),
        ("R", np.full((3, 3), np.nan), "R holds a value that is not finite"),
        ("T", np.zeros(4), r"T has shape \(4,\)"),
        ("T", None, "'T' is not there"),
        ("R", "text", "expected numbers"),
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
    with pytest.raises(DataError, match="holds objects"):
        read_keys(path)
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match="expected a list of strings"):
        read_keys(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is no array file"):
        read_keys(path)


def test_bags_visibility_and_depth_of_a_scene(copy: Path) -> None:
    root = copy / "set_100"
    scene = open_scene(copy)
    assert {size: len(bags) for size, bags in scene.bags.items()} == {2: 3, 3: 2}
    assert scene.bags[3]["3bag_000"] == [Path(line).stem for line in (root / "sub_set" / "3bag_000.txt").open()]
    assert scene.visibility_threshold == 1  # of our own scenes, stored with them
    counts = scene.visibility
    assert counts is not None
    assert counts.shape == (4, 4)
    assert (np.diag(counts) == -1).all()
    assert counts[2, 1] > 50
    assert counts[1, 2] == 0  # one-sided
    assert scene.left_out() == {"depth": "no depth maps: no repeatability, no matching score"}
    (root / "depth_maps").mkdir()
    for name in ("view_0", "view_3"):
        with h5py.File(root / "depth_maps" / f"{name}.h5", "w") as file:
            file["depth"] = np.full((270, 360), 2.0)
    partial = open_scene(copy)
    assert list(partial.depth_maps) == ["view_0", "view_3"]
    assert partial.depth("view_3").dtype == np.float32
    assert partial.left_out() == {"depth": "2 images have no depth map: nor do their pairs"}
    assert partial.fingerprint != scene.fingerprint


def test_list_files_give_the_order_and_blank_lines_are_none(copy: Path) -> None:
    root = copy / "set_100"
    row = (root / "visibility" / "view_2.txt").read_text()
    (root / "visibility" / "view_2.txt").rename(root / "visibility" / "third.txt")
    lines = (root / "visibility.txt").read_text().replace("view_2", "third")
    (root / "visibility.txt").write_text(lines.replace("\n", "\n\n"))
    (root / "images.txt").write_text((root / "images.txt").read_text() + "\n")
    counts = open_scene(copy).visibility
    assert counts is not None
    assert counts[2].tolist() == [float(value) for value in row.split()]


@pytest.mark.parametrize(
    ("dataset", "threshold"), [("phototourism", 100), ("pragueparks", 100), ("googleurban", 1), ("elsewhere", 100)]
)
def test_official_scenes_have_the_threshold_of_their_data_set(dataset: str, threshold: float, copy: Path) -> None:
    folder = copy.parent / dataset
    folder.mkdir()
    copy.rename(folder / "scene")
    (folder / "scene" / "set_100" / "scene.json").unlink()
    (scene,) = find_scenes(folder)
    assert scene.dataset == (dataset if dataset != "elsewhere" else "custom")
    assert scene.visibility_threshold == threshold


def test_names_with_dots_lose_their_last_suffix_alone(copy: Path) -> None:
    root = copy / "set_100"
    (root / "images" / "view_0.png").rename(root / "images" / "IMG_1.MOV_frame01.png")
    (root / "images.txt").write_text((root / "images.txt").read_text().replace("view_0", "IMG_1.MOV_frame01"))
    (root / "calibration" / "calibration_view_0.h5").rename(root / "calibration" / "calibration_IMG_1.MOV_frame01.h5")
    scene = open_scene(copy)
    assert next(iter(scene.images)) == "IMG_1.MOV_frame01"
    assert "IMG_1.MOV_frame01" in scene.cameras


def test_a_partial_download_says_what_is_missing(copy: Path) -> None:
    root = copy / "set_100"
    shutil.rmtree(root / "visibility")
    assert open_scene(copy).left_out()["multiview"] == "no visibility files (visibility/*.txt)"
    shutil.rmtree(root / "sub_set")
    scene = open_scene(copy)
    assert scene.visibility is None
    assert scene.bags == {}
    assert set(scene.left_out()) == {"multiview", "depth"}
    (root / "new-vis-pairs" / "keys-th-0.1.npy").unlink()
    assert open_scene(copy).left_out()["stereo"].endswith("(new-vis-pairs/keys-th-0.1.npy)")
    shutil.rmtree(root / "new-vis-pairs")
    assert set(open_scene(copy).left_out()) == {"stereo", "multiview", "depth"}


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("wall/H_1_2", "python -m eval sequences"),
        ("wall/1.jpg", "python -m eval imw-submit"),
        ("sparse/cameras.txt", "python -m eval imw-scene"),
        ("notes.txt", "in it or in set_100$"),
    ],
)
def test_another_layout_is_recognised(file: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(DataError, match=hint):
        find_scenes(tmp_path)


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
    "empty": (
        lambda s: (s / "set_100" / "images.txt").write_text("\n"),
        DataError,
        r"has 0 image\(s\), at least 2",
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
    "a pair twice": (
        lambda s: np.save(s / "set_100" / "new-vis-pairs" / "keys-th-0.1.npy", np.array(["view_1-view_0"] * 2)),
        DataError,
        r"keys-th-0\.1\.npy lists a pair twice",
    ),
}


def _bag(text: str) -> Callable[[Path], object]:
    return lambda s: (s / "set_100" / "sub_set" / "3bag_000.txt").write_text(text)


def _depth(value: object, name: str = "depth") -> Callable[[Path], object]:
    def write(scene: Path) -> None:
        (scene / "set_100" / "depth_maps").mkdir()
        with h5py.File(scene / "set_100" / "depth_maps" / "view_0.h5", "w") as file:
            file[name] = value

    return write


PART_FAULTS = {
    "bag of strangers": (_bag("images/x.png\nimages/view_0.png\nimages/view_1.png\n"), "names the image 'x'"),
    "short bag": (_bag("images/view_0.png\nimages/view_1.png\n"), "3bag_000.txt: expected 3 different images, got 2"),
    "bag with a repeat": (_bag("images/view_0.png\n" * 3), "expected 3 different images, got 3"),
    "binary bag": (
        lambda s: (s / "set_100" / "sub_set" / "3bag_000.txt").write_bytes(b"\xff\xfe\x00"),
        "3bag_000.txt is not UTF-8 text",
    ),
    "short visibility": (
        lambda s: (s / "set_100" / "visibility" / "view_1.txt").write_text("1 2\n"),
        r"view_1\.txt: 2 counts for 4 images",
    ),
    "negative visibility": (
        lambda s: (s / "set_100" / "visibility" / "view_1.txt").write_text("1 2 -3 4\n"),
        r"view_1\.txt: 4 counts for 4 images, or some are no counts",
    ),
    "visibility of words": (
        lambda s: (s / "set_100" / "visibility" / "view_1.txt").write_text("many\n"),
        r"view_1\.txt holds something that is not a number",
    ),
    "missing visibility": (
        lambda s: (s / "set_100" / "visibility" / "view_1.txt").unlink(),
        r"1 visibility files are not there: .*view_1\.txt",
    ),
    "short list": (
        lambda s: (s / "set_100" / "visibility.txt").write_text("visibility/view_0.txt\n"),
        r"visibility\.txt: 1 files for 4 images",
    ),
    "threshold": (
        lambda s: (s / "set_100" / "scene.json").write_text('{"visibility_threshold": "x"}'),
        r"scene\.json: visibility_threshold must be a number",
    ),
    "flat depth": (_depth(np.zeros(7)), r"view_0\.h5: depth is float64 of shape \(7,\), expected numbers"),
    "another name": (_depth(np.zeros((2, 2)), "d"), r"view_0\.h5: 'depth' is not there"),
    "depth of words": (_depth("deep"), r"view_0\.h5: 'depth' holds object"),
}


@pytest.mark.parametrize("fault", PART_FAULTS)
def test_faults_of_the_further_parts_are_named(fault: str, copy: Path) -> None:
    break_it, message = PART_FAULTS[fault]
    break_it(copy)
    with pytest.raises(HardNet8Error, match=message) as caught:
        scene = open_scene(copy)
        assert scene.bags
        assert scene.visibility is not None
        assert scene.visibility_threshold == 1
        scene.depth("view_0")
    assert "\n" not in str(caught.value)


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


def test_a_depth_that_is_no_positive_number_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "view.h5"
    with h5py.File(path, "w") as file:
        file["depth"] = np.array([[1.5, np.nan, -2.0], [np.inf, 0.0, 3.0]])
    np.testing.assert_array_equal(read_depth(path), [[1.5, 0.0, 0.0], [0.0, 0.0, 3.0]])
