from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray

from eval.cli import main
from eval.imw.build import build_scene, connected_bags, covisibility, parse_bags, read_model, scene_names
from eval.imw.scene import open_scene
from kornia_hardnet8.errors import DataError, UsageError

WriteModel = Callable[..., None]


def test_the_scene_holds_the_models_poses_in_pixel_centre_coordinates(corner, corner_scene: Path) -> None:
    root = corner_scene / "set_100"
    names = ["view_0", "view_1", "view_2", "view_3"]
    assert (root / "images.txt").read_text().split() == [f"images/{name}.png" for name in names]
    assert (root / "calibration.txt").read_text().split() == [f"calibration/calibration_{n}.h5" for n in names]
    for name, (R, t) in zip(names, corner.poses.values(), strict=True):
        with h5py.File(root / "calibration" / f"calibration_{name}.h5") as file:
            np.testing.assert_allclose(file["K"], corner.K, atol=1e-9)
            np.testing.assert_allclose(file["R"], R, atol=1e-9)
            np.testing.assert_allclose(file["T"], t, atol=1e-9)
        source = corner.images / f"{name.replace('_', '-')}.png"
        assert (root / "images" / f"{name}.png").read_bytes() == source.read_bytes()


def test_visibility_is_one_sided_and_the_lists_follow_the_formula(corner, corner_scene: Path) -> None:
    root = corner_scene / "set_100"
    views = read_model(corner.images, corner.model)
    counts = np.array([(root / "visibility" / f"{view.name}.txt").read_text().split() for view in views], float)
    expected = np.array([[len(a.points.keys() & b.points.keys()) for b in views] for a in views], float)
    np.testing.assert_array_equal(np.tril(counts, -1), np.tril(expected, -1))
    assert (np.diag(counts) == -1).all()
    assert not np.triu(counts, 1).any()
    assert expected.min() > 50
    for threshold in ("0.0", "0.1", "0.2", "0.5"):
        listed = np.load(root / "new-vis-pairs" / f"keys-th-{threshold}.npy", allow_pickle=False)
        assert listed.dtype.kind == "U"
        wanted = []
        for i, one in enumerate(views):
            for two in views[i + 1 :]:
                common = sorted(one.points.keys() & two.points.keys())
                boxes = [np.ptp([view.points[p] for p in common], axis=0).prod() / (360 * 270) for view in (one, two)]
                if min(boxes) >= float(threshold):
                    wanted.append(f"{two.name}-{one.name}")
        assert listed.tolist() == wanted
    assert len(np.load(root / "new-vis-pairs" / "keys-th-0.0.npy")) == 6


def test_bags_are_distinct_and_connected(corner_scene: Path) -> None:
    folder = corner_scene / "set_100" / "sub_set"
    listed = set((corner_scene / "set_100" / "images.txt").read_text().split())
    bags = {path.name: path.read_text().split() for path in folder.iterdir()}
    assert sorted(bags) == [
        "2bag_000.txt",
        "2bag_001.txt",
        "2bag_002.txt",
        "3bag_000.txt",
        "3bag_001.txt",
    ]
    assert len({tuple(bag) for bag in bags.values()}) == 5
    for name, bag in bags.items():
        assert len(set(bag)) == int(name[0])
        assert set(bag) <= listed


def test_bags_follow_the_edges_and_the_seed() -> None:
    names = list("abcdef")
    edges = [("a", "b"), ("b", "c"), ("d", "e")]
    assert {tuple(b) for b in connected_bags(names, edges, 3, 9, 0)} == {("a", "b", "c")}
    pairs = {tuple(b) for b in connected_bags(names, edges, 2, 9, 0)}
    assert pairs == {("a", "b"), ("b", "c"), ("d", "e")}
    assert connected_bags(names, edges, 4, 9, 0) == []
    assert connected_bags(names, edges, 9, 9, 0) == []
    ring = [(names[k], names[k - 1]) for k in range(6)]
    assert connected_bags(names, ring, 3, 3, 1) == connected_bags(names, ring, 3, 3, 1)
    assert len(connected_bags(names, ring, 3, 6, 1)) == 6


@pytest.mark.parametrize(
    ("points1", "points2", "expected"),
    [([[0, 0], [100, 50]], [[10, 10], [60, 90]], 0.4), ([], [], 0.0), ([[5, 5]], [[7, 7]], 0.0)],
)
def test_covisibility_values(points1: list, points2: list, expected: float) -> None:
    one, two = (np.array(p, float).reshape(-1, 2) for p in (points1, points2))
    assert covisibility(one, two, (100, 100), (100, 100)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("SIMPLE_RADIAL", [340.0, 180.0, 135.0, 0.15]),
        ("SIMPLE_FISHEYE", [340.0, 180.0, 135.0]),
        ("OPENCV_FISHEYE", [340.0, 340.0, 180.0, 135.0, 0, 0, 0, 0]),
    ],
)
def test_distorted_images_are_undistorted_with_their_points(
    kind: str, params: list[float], corner, tmp_path: Path, write_model: WriteModel
) -> None:
    """Dots drawn where a camera that is no pinhole sees 3-D points lie where the new K puts those points."""
    points = np.array([[x, y, 2.5 + 0.3 * x] for x in (-1.6, -0.5, 0.7, 1.6) for y in (-1.2, 0.1, 1.1)], float)
    camera = pycolmap.Camera(model=kind, width=360, height=270, params=params)
    (tmp_path / "images").mkdir()
    (tmp_path / "model").mkdir()
    poses = dict(list(corner.poses.items())[1:3])
    for name, (R, t) in poses.items():
        image = np.zeros((270, 360), np.uint8)
        for xy in camera.img_from_cam(points @ R.T + t) - 0.5:
            image = np.maximum(image, _dot(xy))
        cv2.imwrite(str(tmp_path / "images" / name), image)
    text = f"{kind} 360 270 {' '.join(map(str, params))}"
    # the observations of the model are those of a pinhole camera, moved to the distorted image below
    write_model(tmp_path / "model", corner.K, poses, points, (360, 270), text)
    model = pycolmap.Reconstruction(tmp_path / "model")
    for image in model.images.values():
        for point in image.points2D:
            xyz = model.points3D[point.point3D_id].xyz
            point.xy = camera.img_from_cam(image.cam_from_world() * xyz)
    (tmp_path / "binary").mkdir()
    model.write_binary(tmp_path / "binary")
    build_scene(tmp_path / "images", tmp_path / "binary", tmp_path / "scene")
    scene = open_scene(tmp_path / "scene")
    views = {view.name: view for view in read_model(tmp_path / "images", tmp_path / "binary")}
    for name, (R, t) in zip(scene.images, poses.values(), strict=True):
        K = scene.cameras[name].K
        x = (points @ R.T + t) @ K.T
        expected = x[:, :2] / x[:, 2:]
        seen = scene.gray(name)
        assert seen.shape == views[name].size[::-1]
        for xy in expected:
            np.testing.assert_allclose(_centroid(seen, xy), xy, atol=0.15)
        observed = np.array([views[name].points[k] for k in sorted(views[name].points)]) - 0.5
        ids = [k - 1 for k in sorted(views[name].points)]
        np.testing.assert_allclose(observed, expected[ids], atol=1e-3)


def _write_depth_map(path: Path, depth: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"{depth.shape[1]}&{depth.shape[0]}&1&".encode() + depth.astype("<f4").tobytes())


def test_depth_maps_of_a_dense_model(corner, tmp_path: Path, write_model: WriteModel) -> None:
    """A workspace of half the size: its maps are read at the pixels that show the same rays."""
    dense = tmp_path / "dense"
    (dense / "sparse").mkdir(parents=True)
    half = np.diag([0.5, 0.5, 1.0]) @ corner.K
    half[:2, 2] = (corner.K[:2, 2] + 0.5) / 2 - 0.5
    points = np.array([[0.1 * k, 0.2, 3.0] for k in range(9)])
    write_model(dense / "sparse", half, corner.poses, points, (180, 135))
    rows, columns = np.mgrid[:135, :180]
    for number, kind in ((0, "geometric"), (0, "photometric"), (2, "photometric")):
        depth = (1 + columns + 1000 * rows + (0.5 if kind == "photometric" else 0)).astype(np.float32)
        depth[5, 7], depth[6, 8] = np.nan, -1
        _write_depth_map(dense / "stereo" / "depth_maps" / f"view-{number}.png.{kind}.bin", depth)
    out = tmp_path / "scene"
    line = ["imw-scene", "--images", str(corner.images), "--model", str(corner.model), "--out", str(out)]
    assert main([*line, "--dense", str(dense)]) == 0
    scene = open_scene(out)
    assert list(scene.depth_maps) == ["view_0", "view_2"]
    assert scene.left_out()["depth"] == "2 images have no depth map: nor do their pairs"
    depth = scene.depth("view_0")
    assert depth.shape == (270, 360)
    assert (depth[40, 60], depth[41, 61], depth[269, 359]) == (20031, 20031, 134180)
    assert depth[10:12, 14:16].tolist() == [[0, 0], [0, 0]] == depth[12:14, 16:18].tolist()
    assert scene.depth("view_2")[40, 60] == 20031.5


@pytest.mark.parametrize("fault", ["no maps", "no cameras", "no map", "cut", "size"])
def test_bad_dense_models_are_one_line(
    fault: str, corner, tmp_path: Path, write_model: WriteModel, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = tmp_path / "dense"
    (dense / "sparse").mkdir(parents=True)
    write_model(dense / "sparse", corner.K, corner.poses, np.array([[0.1 * k, 0.2, 3.0] for k in range(9)]), (360, 270))
    path = dense / "stereo" / "depth_maps" / "view-1.png.geometric.bin"
    shape = (10, 10) if fault == "size" else (270, 360)
    _write_depth_map(path, np.ones(shape, np.float32))
    if fault == "no maps":
        shutil.rmtree(dense / "stereo")
    elif fault == "no cameras":
        shutil.rmtree(dense / "sparse")
    elif fault == "no map":
        path.rename(path.with_name("other.png.geometric.bin"))
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    message = {
        "no maps": "depth_maps is not there",
        "no cameras": "sparse is not there",
        "no map": "holds no depth map of the 4 images",
        "cut": "is cut short: 990 bytes for 360 x 270",
        "size": "is 10 x 10, its camera 360 x 270",
    }[fault]
    line = ["imw-scene", "--images", str(corner.images), "--model", str(corner.model), "--out", str(tmp_path / "scene")]
    assert main([*line, "--dense", str(dense)]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "scene").exists()


def test_names_are_flattened_and_clashes_refused() -> None:
    names = scene_names(["a-b.jpg", "cam0/1.jpg", "cam1/1.jpg", "x.y.png"])
    assert list(names.values()) == ["a_b", "cam0_1", "cam1_1", "x.y"]
    for clash in (["a-b.jpg", "a_b.jpg"], ["a.jpg", "a.png"], ["a/b.jpg", "a-b.jpg"]):
        with pytest.raises(DataError, match="would both be called"):
            scene_names(clash)


def test_other_formats_become_png_and_jpeg_stays(corner, tmp_path: Path, write_model: WriteModel) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "model").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (270, 360, 3)).astype(np.uint8)
    poses = dict(zip(("a.bmp", "b.JPEG"), corner.poses.values(), strict=False))
    for name in poses:
        cv2.imwrite(str(tmp_path / "images" / name), image)
    write_model(tmp_path / "model", corner.K, poses, np.array([[0.1 * k, 0.2, 3.0] for k in range(9)]), (360, 270))
    build_scene(tmp_path / "images", tmp_path / "model", tmp_path / "scene")
    folder = tmp_path / "scene" / "set_100" / "images"
    np.testing.assert_array_equal(cv2.imread(str(folder / "a.png")), image)
    assert (folder / "b.jpg").read_bytes() == (tmp_path / "images" / "b.JPEG").read_bytes()


def test_bag_texts() -> None:
    assert parse_bags("5:20,10:10") == {5: 20, 10: 10}
    assert parse_bags("") == {}
    for text in ("5", "1:3", "5:x", "5:1,5:2", "5:-1"):
        with pytest.raises(UsageError, match="SIZE:COUNT"):
            parse_bags(text)


def test_the_command_works_as_typed(corner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scene"
    line = ["imw-scene", "--images", str(corner.images), "--model", str(corner.model), "--out", str(out)]
    assert main(line) == 0
    assert capsys.readouterr().out == f"{out}: 4 images, 6 pairs, no bags\n"
    assert main(line) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*line, "--bags", "five"]) == 2


@pytest.mark.parametrize(
    "fault",
    ["no images", "no model", "missing image", "damaged image", "one image", "size", "cut", "no points", "panorama"],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    fault: str, corner, tmp_path: Path, capsys: pytest.CaptureFixture[str], write_model: WriteModel
) -> None:
    images, model, out = tmp_path / "images", tmp_path / "model", tmp_path / "out" / "scene"
    shutil.copytree(corner.images, images)
    shutil.copytree(corner.model, model)
    expected = {
        "no images": f"image folder {images} is not there",
        "no model": "holds no COLMAP model",
        "missing image": f"images of the model {model} are not in {images}: view-2.png",
        "damaged image": "view-1.png is cut short",
        "one image": "has 1 registered image",
        "size": "view-0.png is 180 x 135 pixels, the model says 360 x 270",
        "cut": f"{model / 'images.bin'} is damaged or cut short",
        "no points": f"the COLMAP model {model} has no 3-D points",
        "panorama": f"image {images / 'view-0.png'}: a pinhole camera cannot show what its EQUIRECTANGULAR",
    }[fault]
    if fault == "no images":
        shutil.rmtree(images)
    elif fault == "no model":
        (model / "cameras.txt").unlink()
    elif fault == "missing image":
        (images / "view-2.png").unlink()
    elif fault == "damaged image":
        path = images / "view-1.png"
        path.write_bytes(path.read_bytes()[:60])
    elif fault == "one image":
        write_model(model, corner.K, dict(list(corner.poses.items())[:1]), np.zeros((0, 3)), (360, 270))
    elif fault == "size":
        path = images / "view-0.png"
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (180, 135)))
    elif fault == "no points":
        write_model(model, corner.K, corner.poses, np.zeros((0, 3)), (360, 270))
    elif fault == "panorama":
        (model / "cameras.txt").write_text("1 EQUIRECTANGULAR 360 270 360 270\n")
    elif fault == "cut":
        pycolmap.Reconstruction(model).write_binary(model)
        for text in model.glob("*.txt"):
            text.unlink()
        path = model / "images.bin"
        path.write_bytes(path.read_bytes()[:100])
    code = main(["imw-scene", "--images", str(images), "--model", str(model), "--out", str(out)])
    captured = capsys.readouterr()
    assert code == 1
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert list(tmp_path.glob("out/*")) == []


def _dot(xy: NDArray[np.float64]) -> NDArray[np.uint8]:
    v, u = np.mgrid[:270, :360]
    return (250 * np.exp(-((u - xy[0]) ** 2 + (v - xy[1]) ** 2) / (2 * 2.0**2))).round().astype(np.uint8)


def _centroid(image: NDArray[np.uint8], near: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = near.round().astype(int)
    window = image[y - 7 : y + 8, x - 7 : x + 8].astype(float)
    v, u = np.mgrid[y - 7 : y + 8, x - 7 : x + 8]
    return np.array([(u * window).sum(), (v * window).sum()]) / window.sum()
