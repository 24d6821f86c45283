"""Stores from COLMAP models: a rendered scene with known geometry."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from tests.common.colmap_files import state
from train.stores.colmap import ColmapSettings, build_colmap, cut_fixed, fixed_windows
from train.stores.colmap_model import load_observations
from train.stores.flags import parse_crop
from train.stores.frames import inside_share


@pytest.fixture(scope="module")
def built(scene, tmp_path_factory):
    path = tmp_path_factory.mktemp("colmap") / "store"
    return build_colmap(scene.images, scene.model, path), PatchStore.open(path)


def _pairs(store: PatchStore) -> tuple[np.ndarray, np.ndarray]:
    """Every two patches of one label."""
    labels = np.asarray(store.labels)
    first, second = np.nonzero(np.triu(labels[:, None] == labels[None], k=1))
    return first, second


def test_patches_of_one_point_show_the_same_thing(built, correlate) -> None:
    """The views differ by up to 160 degrees and a factor 1.6: only the right sign, scale and shift survive."""
    _, store = built
    first, second = _pairs(store)
    whole = inside_share(store.frames, 320, 240) == 1  # the border of an image is replicated
    first, second = first[whole[first] & whole[second]], second[whole[first] & whole[second]]
    assert len(first) >= 40
    inset = round(64 * (1 - 1 / 1.5) / 2)
    plain = store.patches[:, inset:-inset, inset:-inset]
    assert np.percentile(correlate(plain[first], plain[second]), 10) > 0.95
    other = np.roll(second, 1)
    different = store.labels[first] != store.labels[other]
    assert np.median(correlate(plain[first], plain[other])[different]) < 0.4


def test_bookkeeping(scene, built) -> None:
    counts, store = built
    assert (counts.patches, counts.labels, counts.source) == (len(store), store.meta["num_labels"], {"images": 3})
    assert (store.meta["crop"], store.meta["mr_size"], store.meta["kind"]) == (1.5, 12.0, "tuples")
    labels, per_label = np.unique(store.labels, return_counts=True)
    np.testing.assert_array_equal(labels, np.arange(counts.labels))
    assert per_label.min() >= 2
    # images are numbered by sorted name
    assert [source["name"] for source in store.meta["sources"]] == ["a second.png", "b/first.png", "c.png"]
    np.testing.assert_array_equal(store.image_ids, store.cam_ids)
    dropped = store.meta["dropped"]
    assert dropped["border"] + dropped["short_track"] + counts.patches == sum(map(len, scene.observed))


def test_frames_are_plain_and_centred_on_pixels(scene, built) -> None:
    """The first image is the plane shifted: frames lie at the true points, half side 12 sigma, with no crop in it."""
    _, store = built
    rows = np.asarray(store.image_ids) == 1
    frames = np.asarray(store.frames)[rows]
    true = scene.xy + scene.similarities[0][:2, 2]
    distance = np.linalg.norm(frames[:, None, :, 2] - true[None], axis=2)
    point = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1e-3
    cos = 12 * scene.sigma[point] * np.cos(scene.angle[point])
    sin = 12 * scene.sigma[point] * np.sin(scene.angle[point])
    expected = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
    np.testing.assert_allclose(frames[:, :, :2], expected, atol=1e-3)


def test_corner_origin_is_taken_off(tmp_path: Path, scene_factory) -> None:
    """On an image of gray value 0.4 x + 0.2 y the middle of each patch tells where it was cut."""
    scene = scene_factory(tmp_path)
    y, x = np.mgrid[0:240, 0:320]
    ramp = np.rint(0.4 * x + 0.2 * y).astype(np.uint8)
    for name in scene.names:
        cv2.imwrite(str(scene.images / name), ramp)
    build_colmap(scene.images, scene.model, tmp_path / "store")
    store = PatchStore.open(tmp_path / "store")
    centre = np.asarray(store.frames)[:, :, 2]
    inside = ((centre > 70) & (centre < [250, 170])).all(axis=1)
    middle = store.patches[:, 31:33, 31:33].mean(axis=(1, 2))
    expected = centre @ [0.4, 0.2]
    assert inside.sum() > 20
    assert abs((middle - expected)[inside].mean()) < 0.06  # half a pixel off would be 0.3
    views = load_observations(scene.images, scene.model, scene.features)
    true = scene.xy @ scene.similarities[0][:2, :2].T + scene.similarities[0][:2, 2]
    distance = np.linalg.norm(views[1].xy[:, None] - true[None], axis=2)
    assert distance.min(axis=1).max() < 1e-3


def test_detected_again_without_features(scene, tmp_path: Path, correlate) -> None:
    shutil.copytree(scene.model, tmp_path / "model")
    counts = build_colmap(scene.images, tmp_path / "model", tmp_path / "store")
    store = PatchStore.open(tmp_path / "store")
    total = sum(map(len, scene.observed))
    dropped = PatchStore.open(tmp_path / "store").meta["dropped"]
    assert dropped["undetected"] < 0.5 * total
    assert sum(dropped.values()) + counts.patches == total
    first, second = _pairs(store)
    inset = round(64 * (1 - 1 / 1.5) / 2)
    plain = store.patches[:, inset:-inset, inset:-inset]
    assert len(first) > 25
    assert np.median(correlate(plain[first], plain[second])) > 0.9


def test_workers_change_nothing(scene, built, tmp_path: Path) -> None:
    build_colmap(scene.images, scene.model, tmp_path / "store", num_workers=1)
    again = PatchStore.open(tmp_path / "store")
    for name in ("patches", "labels", "image_ids", "frames"):
        np.testing.assert_array_equal(getattr(again, name), getattr(built[1], name))


def test_min_track(scene, tmp_path: Path) -> None:
    counts = build_colmap(scene.images, scene.model, tmp_path / "store", ColmapSettings(min_track=3))
    labels, per_label = np.unique(PatchStore.open(tmp_path / "store").labels, return_counts=True)
    assert per_label.min() == 3
    assert counts.labels == len(labels)
    with pytest.raises(DataError, match="no point is seen in 4 images"):
        build_colmap(scene.images, scene.model, tmp_path / "none", ColmapSettings(min_track=4))
    assert not (tmp_path / "none").exists()


def test_fixed_windows_of_2020(vectors) -> None:
    case = vectors["colmap.crop"]
    image = vectors.image(120, 160)
    corners, keep = fixed_windows(np.array(case["inputs"]["xy"]), 160, 120)
    assert keep.tolist() == case["expected"]["kept"]
    windows = cut_fixed(image, corners[keep])
    got = [[int(x), int(y), int(w.sum())] for (x, y), w in zip(corners[keep], windows, strict=True)]
    assert got == [row for row in case["expected"]["x0_y0_sum"] if row is not None]


def test_build_fixed(scene, tmp_path: Path) -> None:
    counts = build_colmap(scene.images, scene.model, tmp_path / "store", ColmapSettings(fixed=True))
    store = PatchStore.open(tmp_path / "store")
    assert counts.patches == len(store) > 20
    assert (store.meta["crop"], store.meta["mr_size"], store.patch_size) == (1.0, None, 64)
    image = cv2.imread(str(scene.images / "c.png"), cv2.IMREAD_GRAYSCALE)
    row = np.flatnonzero(np.asarray(store.image_ids) == 2)[0]
    x, y = store.frames[row][:, 2]
    np.testing.assert_array_equal(store.frames[row][:, :2], [[32, 0], [0, 32]])
    left, top = int(x - 31.5), int(y - 31.5)
    np.testing.assert_array_equal(store.patches[row], image[top : top + 64, left : left + 64])


def test_crop_argument() -> None:
    assert parse_crop("fixed") == "fixed"
    assert parse_crop("1.5") == 1.5
    for text in ("0.9", "loose", "nan"):
        with pytest.raises(UsageError, match="--crop"):
            parse_crop(text)


def test_bad_input_is_named(scene, scene_factory, tmp_path: Path) -> None:
    out = tmp_path / "store"
    with pytest.raises(MissingFileError, match=r"image folder .*nowhere"):
        build_colmap(tmp_path / "nowhere", scene.model, out)
    with pytest.raises(MissingFileError, match=r"model folder .*nowhere"):
        build_colmap(scene.images, tmp_path / "nowhere", out)
    with pytest.raises(DataError, match="holds no COLMAP model"):
        build_colmap(scene.images, scene.images, out)
    with pytest.raises(MissingFileError, match=r"features file .*nowhere"):
        build_colmap(scene.images, scene.model, out, features=tmp_path / "nowhere.h5")
    assert not out.exists()

    copy = scene_factory(tmp_path / "copy")
    (copy.images / "c.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"c\.png does not decode"):
        build_colmap(copy.images, copy.model, out)
    cv2.imwrite(str(copy.images / "c.png"), np.zeros((100, 120), np.uint8))
    with pytest.raises(DataError, match=r"c\.png is 120 x 100 pixels, the model says 320 x 240"):
        build_colmap(copy.images, copy.model, out)
    (copy.images / "c.png").unlink()
    with pytest.raises(MissingFileError, match=r"images of the model .* c\.png"):
        build_colmap(copy.images, copy.model, out)
    assert not out.exists()


def test_bad_features_are_named(scene_factory, tmp_path: Path) -> None:
    scene = scene_factory(tmp_path / "copy")
    with h5py.File(scene.features, "r+") as file:
        rows = np.asarray(file["c.png"])
        del file["c.png"]
        file["c.png"] = rows[:-1]
    with pytest.raises(DataError, match=r"features\.h5: c\.png is .* expected"):
        build_colmap(scene.images, scene.model, tmp_path / "store", features=scene.features)
    with h5py.File(scene.features, "r+") as file:
        del file["c.png"]
    with pytest.raises(DataError, match=r"'c\.png' is not there"):
        build_colmap(scene.images, scene.model, tmp_path / "store", features=scene.features)
    rows[0, 2] = 0
    with h5py.File(scene.features, "r+") as file:
        file["c.png"] = rows
    with pytest.raises(DataError, match="not positive"):
        build_colmap(scene.images, scene.model, tmp_path / "store", features=scene.features)
    scene.features.write_bytes(b"no hdf5")
    with pytest.raises(DataError, match="damaged or no HDF5 file"):
        build_colmap(scene.images, scene.model, tmp_path / "store", features=scene.features)


def test_features_that_merely_lie_there_are_passed_over(
    scene_factory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Files of other programs beside a model: SIFT is detected again, and nothing of theirs is changed."""
    scene = scene_factory(tmp_path / "copy")
    scene.features.unlink()
    build_colmap(scene.images, scene.model, tmp_path / "without")
    with h5py.File(scene.features, "w") as file:  # one group an image, as hloc writes
        for name in scene.names:
            file.create_group(name)["keypoints"] = np.zeros((5, 2))
    scene.model.parent.joinpath("database.db").write_bytes(b"not a database at all")
    before = state(scene.model.parent)
    build_colmap(scene.images, scene.model, tmp_path / "with")
    assert state(scene.model.parent) == before
    assert f"{scene.features} is passed over" in caplog.text
    assert "database.db is passed over" in caplog.text
    stores = [PatchStore.open(tmp_path / name) for name in ("without", "with")]
    np.testing.assert_array_equal(stores[0].patches, stores[1].patches)
