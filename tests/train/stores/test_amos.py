"""Stores of fixed cameras: the AMOS vectors, and builds from rendered views."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import correlate1d, maximum_filter

from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from train.stores.amos import (
    CROP,
    PATCH_SIZE,
    AmosSettings,
    build_amos,
    collisions,
    cut_maps,
    detect_squares,
    reference_image,
    seen_in,
    square_corners,
    squares_inside,
)
from train.stores.frames import cut, similarity_frames
from train.stores.hessian import (
    default_sigmas,
    gauss_kernel,
    gaussian_blur,
    hessian_response,
    local_maxima,
    window,
    window_maximum,
)
from train.stores.redetected import RedetectedSettings, build_redetected
from train.stores.view_folders import list_views, read_homography, warp_to_reference

VECTOR_TESTS = {
    "amos.laf_to_affine": "test_cut_maps",
    "amos.attrs": "test_sizes",
    "amos.corner_points": "test_corners",
    "amos.inside_test": "test_inside",
    "amos.crop_patch": "test_cut_of_one_patch",
    "amos.gauss_kernels": "test_gauss_kernels",
    "amos.hessian_response": "test_hessian_response",
    "amos.nms_windows": "test_windows",
    "amos.detect": "test_detection",
    "amos.frames_of_view": "test_frames_of_view",
    "amos.collisions": "test_collisions",
    "amos.homography_warp": "test_homography_warp",
}
VECTORS_LEFT_OUT = {
    "amos.byte_round_trip": "patches are cut and stored as bytes: there is no float round trip",
    "amos.rotation_and_up": "frames are built upright; the random matrices that it undoes are never made",
}


def test_every_vector_is_used_or_explained(vectors) -> None:
    assert set(vectors.names("amos.")) == set(VECTOR_TESTS) | set(VECTORS_LEFT_OUT)
    assert all(name in globals() for name in VECTOR_TESTS.values())


def _squares(case: dict) -> np.ndarray:
    return np.array(case["inputs"]["lafs"], dtype=float)


def test_cut_maps(vectors) -> None:
    case = vectors["amos.laf_to_affine"]
    assert case["inputs"]["patch_size_big"] == 1.5 * PATCH_SIZE
    np.testing.assert_allclose(cut_maps(_squares(case), PATCH_SIZE), case["expected"]["A"], atol=1e-6)


def test_sizes(vectors) -> None:
    """The cut of 144 pixels holds the stored square from 24 to 120: a frame of half side 72 is cut pixel by pixel."""
    big, low, high = vectors["amos.attrs"]["expected"]["values"]
    corners = square_corners(np.array([[[big / 2, 0, big / 2], [0, big / 2, big / 2]]]), PATCH_SIZE)[0]
    np.testing.assert_allclose(corners[[0, 2]], [[low, low], [high, high]])


def test_corners(vectors) -> None:
    case = vectors["amos.corner_points"]
    np.testing.assert_allclose(square_corners(_squares(case), 96), case["expected"]["points"], rtol=1e-6)


def test_inside(vectors) -> None:
    case = vectors["amos.inside_test"]
    assert squares_inside(_squares(case), *case["inputs"]["image_wh"], 96).tolist() == case["expected"]["kept"]


def test_cut_of_one_patch(vectors) -> None:
    """One resampling of ours against bicubic to 144 pixels and a nearest-neighbour turn."""
    case = vectors["amos.crop_patch"]
    image = vectors.image(240, 320)
    square = np.array([case["inputs"]["laf"]], dtype=float)
    for degrees, name in zip(case["inputs"]["angles_deg"], ("angle0", "angle37"), strict=True):
        frames = similarity_frames(square[:, :, 2] - 0.5, square[:, 0, 0], np.deg2rad([degrees]), 2 / 3 / CROP)
        got = cut(image, frames, 96, CROP)[0].astype(int)
        within = np.abs(got - vectors.array(case["expected"][name])) <= case["tolerance"]["abs_levels"]
        assert within.mean() >= case["tolerance"]["fraction_within"], name


def test_gauss_kernels(vectors) -> None:
    case = vectors["amos.gauss_kernels"]
    np.testing.assert_allclose(default_sigmas(), case["inputs"]["sigmas"])
    for row in case["expected"]["kernels"]:
        kernel = gauss_kernel(row["sigma"])
        assert len(kernel) == row["ksize"]
        np.testing.assert_allclose(kernel[:5], row["kernel_head"], atol=1e-7)
        assert kernel[len(kernel) // 2] == pytest.approx(row["center"], abs=1e-7)


def test_hessian_response(vectors) -> None:
    case = vectors["amos.hessian_response"]
    got = hessian_response(vectors.image(48, 64) / np.float32(255), case["inputs"]["scale"])
    expected = np.array(case["expected"]["rows_0_20_47_first16"])
    np.testing.assert_allclose(got[[0, 20, 47], :16], expected, rtol=1e-4, atol=1e-8)
    assert got.sum() == pytest.approx(case["expected"]["sum"], rel=1e-4)


@pytest.mark.parametrize("shape", [(97, 64), (48, 131)])
def test_blur_and_maxima_of_windows_are_those_of_plain_loops(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    for sigma in default_sigmas()[:4]:  # the longest kernel reaches beyond the image
        kernel = gauss_kernel(sigma)
        expected = correlate1d(correlate1d(image, kernel, axis=0, mode="mirror"), kernel, axis=1, mode="mirror")
        np.testing.assert_allclose(gaussian_blur(image, kernel), expected, rtol=3e-7)
    for side in (1, 3, 61, 109, 629):
        expected = maximum_filter(image, side, mode="constant", cval=-np.inf)
        np.testing.assert_array_equal(window_maximum(image, side), expected)


def test_windows(vectors) -> None:
    case = vectors["amos.nms_windows"]
    base = case["inputs"]["base_size"]
    sides = [window(base, sigma) for sigma in case["inputs"]["sigmas"]]
    assert [[side, side // 2] for side in sides] == case["expected"]["kernel_padding"]


def test_detection(vectors) -> None:
    case = vectors["amos.detect"]
    image = vectors.image(96, 128) / np.float32(255)
    columns = np.arange(128) < 64
    for given, expected in zip(case["inputs"]["cases"], case["expected"]["cases"], strict=True):
        mask = np.tile(columns, (96, 1)) if "mask" in given else None
        got = local_maxima(image, given["base_size"], given["sigmas"], mask, given["thr"])
        assert got.xy.tolist() == expected["centers_xy"]
        np.testing.assert_allclose(got.scale, expected["scales"])


def test_frames_of_view(vectors) -> None:
    case = vectors["amos.frames_of_view"]
    first = vectors.image(240, 320)
    images = [first, np.clip(first.astype(int) + 20, 0, 255).astype(np.uint8), np.roll(first, 3, axis=1)]
    mean = reference_image(iter(images))
    for count, expected in zip(case["inputs"]["max_sets"], case["expected"]["cases"], strict=True):
        squares, used = detect_squares(mean, None, 30.0, count, case["inputs"]["init_thr"])
        assert used == pytest.approx(expected["threshold_used"])
        np.testing.assert_allclose(squares, expected["lafs"], atol=1e-4)


def test_collisions(vectors) -> None:
    case = vectors["amos.collisions"]
    squares, views = _squares(case), np.array(case["inputs"]["cam_idxs"])
    got: list[list[int]] = []
    for view in np.unique(views):
        rows = np.flatnonzero(views == view)
        starts, items = collisions(squares[rows], case["inputs"]["patch_size"])
        for k, row in enumerate(rows):
            others = rows[items[starts[k] : starts[k + 1]]].tolist()
            assert row not in others
            got.append(sorted([*others, int(row)]))  # the vectors list a place among its own collisions
    assert got == case["expected"]["collisions"]


def test_homography_warp(vectors, tmp_path: Path) -> None:
    case = vectors["amos.homography_warp"]
    np.savetxt(tmp_path / "h", np.array(case["inputs"]["H_file"]))
    homography = read_homography(tmp_path / "h")
    got = warp_to_reference(vectors.image(48, 64), homography, (64, 48)).astype(int)
    within = np.abs(got - vectors.array(case["expected"]["warped"])) <= case["tolerance"]["abs_levels"]
    assert within.mean() >= case["tolerance"]["fraction_within"]
    np.savetxt(tmp_path / "identity", 3 * np.eye(3) + 1e-6)
    assert read_homography(tmp_path / "identity") is None


def test_reference_images() -> None:
    images = [np.full((2, 2), v, np.uint8) for v in (0, 51, 255)]
    np.testing.assert_allclose(reference_image(iter(images)), 102 / 255, rtol=1e-6)
    np.testing.assert_allclose(reference_image(iter(images), "median"), 51 / 255, rtol=1e-6)


# --- builds

BASE = 6.0  # places of 4/3 * 6 pixels and more


@pytest.fixture(scope="module")
def root(tmp_path_factory, textures) -> Path:
    """Two cameras: one still, in three lights; one whose second photo is shifted and registered."""
    root = tmp_path_factory.mktemp("views")
    still, moved = root / "0001_street", root / "0002"
    still.mkdir()
    moved.mkdir()
    scene = textures(160, 200, seed=1, finest=1.5)
    for name, light in (("a.jpg", 1.0), ("b.PNG", 0.7), ("c.png", 0.5)):
        cv2.imwrite(str(still / name), np.rint(light * scene).astype(np.uint8))
    wide = textures(160, 240, seed=2, finest=1.5)
    cv2.imwrite(str(moved / "a.png"), np.rint(wide[:, :200]).astype(np.uint8))
    cv2.imwrite(str(moved / "b.png"), np.rint(wide[:, 30:230]).astype(np.uint8))
    np.savetxt(moved / "b", [[2, 0, -60], [0, 2, 0], [0, 0, 2]])  # a's pixel x is b's x - 30
    return root


@pytest.fixture(scope="module")
def built(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "views"
    return build_amos(root, path, AmosSettings(BASE, max_sets=300)), PatchStore.open(path)


def test_rows_go_by_view_image_place(built) -> None:
    counts, store = built
    a, b = (view["labels"] for view in store.meta["views"])
    assert min(a, b) > 20
    assert len(store) == counts.patches == 3 * a + 2 * b
    expected = np.concatenate([np.tile(np.arange(a), 3), a + np.tile(np.arange(b), 2)])
    np.testing.assert_array_equal(store.labels, expected)
    np.testing.assert_array_equal(store.cam_ids, np.repeat([0, 1], [3 * a, 2 * b]))
    np.testing.assert_array_equal(store.image_ids, np.repeat(np.arange(5), [a, a, a, b, b]))
    assert (store.meta["kind"], store.meta["crop"], store.patch_size) == ("views", 1.5, 96)
    assert store.meta["mr_size"] is None
    assert [view["images"] for view in store.meta["views"]] == [3, 2]


def test_patches_of_a_place_agree(built, correlate) -> None:
    """Light alone differs in the first view; the second is brought into register, where it can be."""
    _, store = built
    a, b = (view["labels"] for view in store.meta["views"])
    assert np.median(correlate(store.patches[:a], store.patches[2 * a : 3 * a])) > 0.99
    first, second = store.patches[3 * a : 3 * a + b], store.patches[3 * a + b :]
    visible = np.asarray(store.visible)[3 * a + b :]
    assert 0.5 < visible.mean() < 1  # a's first 30 columns are not in b
    low = np.asarray(store.frames)[3 * a + b :, 0, 2] < 30
    assert not visible[low].any()
    assert np.percentile(correlate(first, second)[visible], 10) > 0.95
    assert np.asarray(store.visible)[: 3 * a + b].all()
    assert np.median(correlate(first, np.roll(second, 1, axis=0))) < 0.4


def test_collisions_are_places_that_overlap(built) -> None:
    counts, store = built
    starts, items = store.collisions
    assert len(starts) == counts.labels + 1
    assert starts[-1] == len(items) > 0
    first = np.asarray(store.frames)[: store.meta["views"][0]["labels"]]
    half = 1.5 * np.linalg.det(first[:, :, :2]) ** 0.5  # of the stored square
    gap = np.abs(first[:, None, :, 2] - first[None, :, :, 2]).max(axis=2)
    touching = gap <= half[:, None] + half[None] + 1e-3
    np.fill_diagonal(touching, False)
    for k in range(len(first)):
        assert items[starts[k] : starts[k + 1]].tolist() == np.flatnonzero(touching[k]).tolist()


def test_masks_and_patch_masks(root, built, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for camera in ("0001", "0002"):
        mask = np.zeros((80, 100), np.uint8)
        mask[:, 50:] = 255  # half the size of the images
        cv2.imwrite(str(tmp_path / "masks" / f"{camera}.png"), mask)
    build_amos(root, tmp_path / "s", AmosSettings(BASE, max_sets=300, patch_mask=True), masks=tmp_path / "masks")
    store = PatchStore.open(tmp_path / "s")
    assert 0 < len(store) < len(built[1])
    assert store.frames[:, 0, 2].min() >= 99.5
    still = np.asarray(store.cam_ids) == 0
    assert 0.7 < store.visible[still].mean() <= 1  # the same scene in other light


def test_seen_in() -> None:
    y, x = np.mgrid[0:120, 0:160]
    blob = np.exp(-((x - 60) ** 2 + (y - 50) ** 2) / (2 * 4.0**2)).astype(np.float32)
    squares = similarity_frames(np.array([[69.0, 50.0], [71.5, 50.0]]), np.full(2, 10.0), np.zeros(2), 1.0)
    assert seen_in(blob, squares, 30.0, 0.001).tolist() == [True, False]
    assert seen_in(np.zeros((50, 50), np.float32), squares, 30.0, 0.001).tolist() == [False, False]


def test_seeds(root, built, tmp_path: Path) -> None:
    build_amos(root, tmp_path / "same", AmosSettings(BASE, max_sets=300))
    again = PatchStore.open(tmp_path / "same")
    np.testing.assert_array_equal(again.patches, built[1].patches)
    build_amos(root, tmp_path / "other", AmosSettings(BASE, max_sets=300, seed=1))
    other = PatchStore.open(tmp_path / "other")
    np.testing.assert_array_equal(other.labels, built[1].labels)
    assert not np.array_equal(other.patches, built[1].patches)


def test_images_that_are_not_kept_are_read_again(root, built, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("train.stores.amos._KEPT_BYTES", 0)
    monkeypatch.setattr("train.stores.amos._CUT_SAMPLES", 1)  # one image at a time
    build_amos(root, tmp_path / "s", AmosSettings(BASE, max_sets=300))
    for name in ("patches.npy", "visible.npy"):
        assert (tmp_path / "s" / name).read_bytes() == (built[1].path / name).read_bytes()


def test_redetected_keypoints(root, tmp_path: Path, correlate) -> None:
    build_redetected(root, tmp_path / "s", RedetectedSettings(max_sets=60))
    store = PatchStore.open(tmp_path / "s")
    assert (store.meta["kind"], store.meta["crop"], store.meta["mr_size"]) == ("tuples", 1.5, 12.0)
    counts = [view["labels"] for view in store.meta["views"]]
    assert max(counts) <= 60
    labels = np.asarray(store.labels)
    first, second = np.nonzero(np.triu(labels[:, None] == labels[None], k=1))
    assert len(first) > 60
    assert (store.image_ids[first] != store.image_ids[second]).all()
    per_label = np.bincount(labels)
    assert set(per_label[: counts[0]]) == {3}
    assert set(per_label[counts[0] :]) == {2}
    centre = np.asarray(store.frames)[:, :, 2]
    assert np.median(np.linalg.norm(centre[first] - centre[second], axis=1)) < 0.3
    assert np.median(correlate(store.patches[first], store.patches[second])) > 0.98
    moved = np.asarray(store.image_ids) == 4
    assert moved.sum() > 10
    assert centre[moved, 0].min() >= 29.5  # what lies left of it is not in the file


def test_redetected_masks_and_nothing(root, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for camera in ("0001", "0002"):
        mask = np.zeros((160, 200), np.uint8)
        mask[:, 100:] = 1
        cv2.imwrite(str(tmp_path / "masks" / f"{camera}.png"), mask)
    build_redetected(root, tmp_path / "s", masks=tmp_path / "masks")
    assert PatchStore.open(tmp_path / "s").frames[:, 0, 2].min() >= 99.5
    flat = tmp_path / "flat" / "1"
    flat.mkdir(parents=True)
    for name in "ab":
        cv2.imwrite(str(flat / f"{name}.png"), np.full((60, 80), 90, np.uint8))
    with pytest.raises(DataError, match="no keypoint was found again"):
        build_redetected(tmp_path / "flat", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_bad_views_are_named(root, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        list_views(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"mask folder .*nowhere"):
        list_views(root, tmp_path / "nowhere")
    (tmp_path / "masks").mkdir()
    with pytest.raises(MissingFileError, match=r"0001\.png"):
        list_views(root, tmp_path / "masks")
    bad = tmp_path / "bad" / "1"
    with pytest.raises(DataError, match="holds no view folder"):
        list_views(tmp_path / "masks")
    bad.mkdir(parents=True)
    image = np.zeros((40, 50), np.uint8)
    cv2.imwrite(str(bad / "a.png"), image)
    with pytest.raises(DataError, match="no view has two images that can be used"):
        list_views(tmp_path / "bad")
    cv2.imwrite(str(bad / "b.png"), image[:, :40])
    with pytest.raises(DataError, match=r"b\.png is 40 x 40 pixels, the first image of its view 50 x 40"):
        list_views(tmp_path / "bad")
    (bad / "b").write_text("1 0 0 0 1 0 0 0 0")
    with pytest.raises(DataError, match="the last one not 0"):
        list_views(tmp_path / "bad")
    (bad / "b").write_text("1 0 0 0 0 0 0 0 1")
    with pytest.raises(DataError, match="have an inverse"):
        list_views(tmp_path / "bad")
    (bad / "c").write_text("1 0 0 0 1 0 0 0 1")
    with pytest.raises(DataError, match="expected no other file, or 1 homographies"):
        list_views(tmp_path / "bad")
    cv2.imwrite(str(tmp_path / "masks" / "0001.png"), np.ones((10, 100), np.uint8))
    with pytest.raises(DataError, match="another aspect"):
        list_views(root, tmp_path / "masks")


def test_a_damaged_image_of_a_view_is_left_out(root, tmp_path: Path, caplog) -> None:
    folder = Path(shutil.copytree(root / "0001_street", tmp_path / "views" / "0001_street"))
    (folder / "zz.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    whole = (folder / "a.jpg").read_bytes()
    (folder / "zy.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    (again,) = list_views(tmp_path / "views")
    assert [image.path.name for image in again.images] == ["a.jpg", "b.PNG", "c.png"]
    assert [line.split(":")[0] for line in caplog.messages] == [
        "left out",
        "left out",
        "2 image(s) and 0 whole view(s) left out, see above",
    ]
    assert "zz.png does not decode" in caplog.text and "zy.jpg is cut short" in caplog.text


def test_a_damaged_image_goes_with_its_homography(tmp_path: Path, textures, caplog) -> None:
    folder = tmp_path / "views" / "0001_street"
    folder.mkdir(parents=True)
    moves = {"b": np.array([[1.0, 0.1, 3], [0, 1, 2], [0, 0, 1]]), "c": np.eye(3), "d": np.diag([2.0, 2, 1])}
    for name in "abcd":
        cv2.imwrite(str(folder / f"{name}.png"), textures(120, 160, seed=3))
    for name, homography in moves.items():
        np.savetxt(folder / f"H_{name}", homography)
    (folder / "c.png").write_bytes(b"no picture")
    (view,) = list_views(tmp_path / "views")
    assert [image.path.name for image in view.images] == ["a.png", "b.png", "d.png"]
    assert view.images[0].homography is None
    for image in view.images[1:]:
        np.testing.assert_allclose(image.homography, moves[image.path.stem])

    # without the first image, homographies go from the second
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])  # the header is whole
    (view,) = list_views(tmp_path / "views")
    assert [image.path.name for image in view.images] == ["b.png", "d.png"]
    assert view.images[0].homography is None
    point = np.array([30.0, 40, 1])  # of the reference that is gone
    in_b, in_d = moves["b"] @ point, moves["d"] @ point
    np.testing.assert_allclose(view.images[1].homography @ in_b, in_d)

    # a view with too few of them costs the others nothing; with a mask, which is of the first image, it goes too
    sound = tmp_path / "views" / "0002_yard"
    sound.mkdir()
    for name in "ab":
        cv2.imwrite(str(sound / f"{name}.png"), textures(120, 160, seed=4))
    (tmp_path / "masks").mkdir()
    for camera in ("0001", "0002"):
        cv2.imwrite(str(tmp_path / "masks" / f"{camera}.png"), np.ones((120, 160), np.uint8))
    assert [view.name for view in list_views(tmp_path / "views", tmp_path / "masks")] == ["0002_yard"]
    assert caplog.messages[-1] == "4 image(s) and 1 whole view(s) left out, see above"
    (folder / "d.png").write_bytes(b"")
    caplog.clear()
    assert [view.name for view in list_views(tmp_path / "views")] == ["0002_yard"]
    assert "0001_street has 1 image(s) that can be used" in caplog.text


def test_bad_settings_and_empty_results(root, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="positive --base"):
        AmosSettings(base=0)
    with pytest.raises(UsageError, match="even --patch-size"):
        AmosSettings(patch_size=63)
    with pytest.raises(DataError, match="no place found in any view"):
        build_amos(root, tmp_path / "s", AmosSettings(threshold=1e6))
    assert not (tmp_path / "s").exists()
