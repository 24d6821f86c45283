import itertools
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import eval.imw.demo
from common.images import read_gray
from eval.core.matching import mutual_nn
from eval.features import registry
from eval.features.detect import DogSettings, detect_dog
from eval.imw.scene import Scene, open_scene
from kornia_hardnet8.errors import DataError
from rendered import town


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The scene of this machine's cache when it is there, which spares its 20 s."""
    return open_scene(eval.imw.demo.cached_scene())


def depth_of(scene: Scene, name: str) -> np.ndarray:
    with h5py.File(scene.root / "depth_maps" / f"{name}.h5") as file:
        return file["depth"][()]


def test_layout_is_that_of_the_benchmark(scene: Scene) -> None:
    assert len(scene.images) == 12
    assert len(scene.pairs("0.0")) == 66
    counts = [len(scene.pairs(t)) for t in scene.thresholds]
    assert counts == sorted(counts, reverse=True)
    assert 10 <= len(scene.pairs("0.7")) < 60  # both easy and hard pairs
    for name, camera in scene.cameras.items():
        np.testing.assert_allclose(camera.R @ camera.R.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(camera.R) == pytest.approx(1)
        height, width = read_gray(scene.images[name]).shape
        assert depth_of(scene, name).shape == (height, width)
        np.testing.assert_allclose(camera.K[:2, 2], [(width - 1) / 2, (height - 1) / 2])
    lists = ("images", "calibration", "visibility", "depth_maps")
    lines = {kind: (scene.root / f"{kind}.txt").read_text().split() for kind in lists}
    assert {kind: len(found) for kind, found in lines.items()} == dict.fromkeys(lists, 12)
    assert all((scene.root / line).is_file() for found in lines.values() for line in found)
    for bag in sorted((scene.root / "sub_set").glob("*bag_*.txt")):
        assert set(bag.read_text().split()) <= set(lines["images"])


def test_depth_maps_agree_with_each_other_and_with_the_ground(scene: Scene) -> None:
    names = list(scene.images)
    agreeing, on_ground = [], []
    for first, second in itertools.pairwise(names):
        one, two, depth = scene.cameras[first], scene.cameras[second], depth_of(scene, first)
        rows, columns = np.nonzero(depth)
        z = depth[rows, columns].astype(float)
        world = (
            (np.stack([columns, rows, np.ones(len(rows))], 1) * z[:, None]) @ np.linalg.inv(one.K).T - one.t
        ) @ one.R
        on_ground.append(np.mean(np.abs(world[:, 2]) < 0.002))
        local = world @ two.R.T + two.t
        at = np.rint((local @ two.K.T)[:, :2] / local[:, 2:]).astype(int)
        other = depth_of(scene, second)
        inside = (local[:, 2] > 0) & (at >= 0).all(1) & (at < other.shape[::-1]).all(1)
        error = np.abs(other[at[inside, 1], at[inside, 0]] / local[inside, 2] - 1)
        agreeing.append(np.mean(error < 0.01))
        assert (world[:, 2] > -0.06).all()  # nothing below the ground
    assert np.mean(on_ground) > 0.1
    assert np.mean(agreeing) > 0.6


def test_matches_obey_the_true_epipolar_geometry(scene: Scene) -> None:
    import pydegensac

    descriptor, settings = registry.load("rootsift"), DogSettings(num=2048)
    first, second = list(scene.images)[6:8]
    grays = [scene.gray(name) for name in (first, second)]
    kpts = [detect_dog(gray, settings) for gray in grays]
    assert min(len(k) for k in kpts) == 2048
    descs = [descriptor.describe_image(gray, k) for gray, k in zip(grays, kpts, strict=True)]
    matches = mutual_nn(*descs, 0.85).matches.numpy()
    x1, x2 = kpts[0].xy[matches[:, 0]].astype(float), kpts[1].xy[matches[:, 1]].astype(float)
    _, inliers = pydegensac.findFundamentalMatrix(x1, x2, 0.75, 0.9999, 10000, seed=0)
    assert inliers.sum() > 100
    one, two = scene.cameras[first], scene.cameras[second]
    R = two.R @ one.R.T
    tx, ty, tz = two.t - R @ one.t
    F = np.linalg.inv(two.K).T @ np.array([[0, -tz, ty], [tz, 0, -tx], [-ty, tx, 0]]) @ R @ np.linalg.inv(one.K)
    h1, h2 = (np.column_stack([x[inliers], np.ones(inliers.sum())]) for x in (x1, x2))
    line = h1 @ F.T
    error = np.abs(np.sum(h2 * line, 1)) / np.hypot(line[:, 0], line[:, 1])
    assert np.median(error) < 0.6
    assert np.mean(error < 2) > 0.8


def test_light_differs_between_views(scene: Scene) -> None:
    means = [scene.gray(name).mean() for name in scene.images]
    assert max(means) > 1.6 * min(means)


def test_shots_depend_on_the_seed_alone() -> None:
    first, again, other = (town.shots(np.random.default_rng(seed)) for seed in (5, 5, 6))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.view.t, b.view.t)
        assert (a.light, a.development, len(a.people)) == (b.light, b.development, len(b.people))
        assert not np.allclose(a.view.t, c.view.t)


@pytest.mark.slow
def test_files_depend_on_the_seed_alone(tmp_path: Path) -> None:
    folders = [eval.imw.demo.build(tmp_path / name, seed=3) for name in ("a", "b")]
    files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in folders]
    assert files[0] == files[1]
    for file in files[0]:
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file


def test_failed_rendering_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rendered.town.square", full_disk)
    with pytest.raises(DataError, match="No space"):
        eval.imw.demo.cached_scene(7)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_package_imports_without_opencv() -> None:
    code = "import eval.imw.demo, sys; assert 'cv2' not in sys.modules and 'h5py' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
