"""Stores from photographs: the geometry of views and links, and the build."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.images import read_bgr
from common.patchstore import PatchStore
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from train.stores.linking import Detections, carry, group, mutual_links, turn_between
from train.stores.photos import PhotoSettings, build_photos, select
from train.stores.views import jacobians, photometric, random_homography, render_view, transfer, warp


@pytest.fixture(scope="module")
def photos(tmp_path_factory, textures) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for name, seed in (("a.png", 1), ("sub/b.jpg", 2), ("left_out_1.png", 3)):
        gray = textures(240, 320, seed=seed, finest=1.5)
        color = np.stack([gray, 0.8 * gray + 20, 0.6 * gray + 40], axis=2)
        cv2.imwrite(str(folder / name), color.astype(np.uint8))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def built(photos, tmp_path_factory) -> PatchStore:
    path = tmp_path_factory.mktemp("store") / "photos"
    build_photos(photos, path, PhotoSettings(num_views=4, max_labels=120, seed=5), exclude=["left_out_*"])
    return PatchStore.open(path)


# --- views


def test_jacobian_is_the_derivative() -> None:
    homography = random_homography(320, 240, np.random.default_rng(3))
    xy = np.array([[100.0, 80.0], [160.0, 120.0]])
    step = 1e-4
    for axis in range(2):
        shift = np.eye(2)[axis] * step
        numeric = (transfer(homography, xy + shift) - transfer(homography, xy - shift)) / (2 * step)
        np.testing.assert_allclose(jacobians(homography, xy)[:, :, axis], numeric, rtol=1e-5)


def test_homographies_are_as_strong_as_stated() -> None:
    """At the point looked at: scale 0.5 ... 2 along the axis of tilt, foreshortened by cos(tilt) >= 0.5 across it."""
    rng = np.random.default_rng(0)
    along, across, turns = [], [], []
    for _ in range(300):
        homography = random_homography(320, 240, rng)
        middle = transfer(np.linalg.inv(homography), np.array([[159.5, 119.5]]))
        assert ((middle > 0) & (middle < [320, 240])).all()
        local = jacobians(homography, middle)[0]
        assert np.linalg.det(local) > 0  # never mirrored
        large, small = np.linalg.svd(local)[1]
        along.append(large)
        across.append(small / large)
        turns.append(np.arctan2(local[1, 0] - local[0, 1], local[0, 0] + local[1, 1]))
    assert min(along) > 0.499
    assert max(along) < 2.001
    assert min(along) < 0.55
    assert max(along) > 1.8
    assert min(across) > 0.499
    assert min(across) < 0.6
    assert max(across) > 0.99
    assert np.histogram(turns, bins=8, range=(-np.pi, np.pi))[0].min() > 15  # any rotation


def test_warp_puts_points_where_the_homography_says() -> None:
    y, x = np.mgrid[0:240, 0:320]
    spot = np.array([[150.3, 110.6]])
    image = (255 * np.exp(-((x - spot[0, 0]) ** 2 + (y - spot[0, 1]) ** 2) / (2 * 6.0**2))).astype(np.float32)
    for scale in (1.4, 0.4):  # enlarged and, sampled finer, reduced
        turn = scale * np.array([[0.8, -0.6], [0.6, 0.8]])
        homography = np.eye(3)
        homography[:2, :2], homography[:2, 2] = turn, [160, 120] - turn @ [150, 110]
        expected = transfer(homography, spot)[0]
        view = warp(image, homography) * (np.hypot(x - expected[0], y - expected[1]) < 35)  # not its mirror images
        found = np.array([(view * x).sum(), (view * y).sum()]) / view.sum()
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_reduced_views_do_not_alias() -> None:
    board = np.indices((240, 320)).sum(axis=0) % 2 * np.float32(255)
    view = warp(board, np.diag([0.5, 0.5, 1.0]))
    assert view[20:100, 20:140].std() < 15


def _detail(image: np.ndarray) -> np.ndarray:
    """The image without its slow change, which shading alters most."""
    image = image.astype(np.float32)
    return (cv2.GaussianBlur(image, (0, 0), 2) - cv2.GaussianBlur(image, (0, 0), 8)).ravel()


def test_photometric_change_keeps_places(textures) -> None:
    image = textures(120, 160, seed=4)
    rng = np.random.default_rng(0)
    results = [photometric(image, rng) for _ in range(30)]
    assert all(r.dtype == np.uint8 and r.shape == image.shape for r in results)
    detail = _detail(image)
    correlations = [np.corrcoef(_detail(r), detail)[0, 1] for r in results]
    assert min(correlations) > 0.5  # never inverted, never shifted
    assert np.median(correlations) < 0.999  # and never the same
    assert np.std([r.mean() for r in results]) > 10


# --- links


def _keypoints(rows: list[tuple[float, float, float, float]]) -> Detections:
    table = np.array(rows, dtype=float).reshape(-1, 4)
    return Detections(table[:, :2], table[:, 2], np.deg2rad(table[:, 3]))


def test_carry_by_a_similarity() -> None:
    """Twice the size, a quarter turn clockwise."""
    homography = np.array([[0, -2.0, 100], [2.0, 0, 10], [0, 0, 1]])
    moved = carry(_keypoints([(10, 5, 3, 30)]), homography)
    np.testing.assert_allclose(moved.xy, [[90, 30]])
    np.testing.assert_allclose(moved.sigma, [6])
    np.testing.assert_allclose(np.rad2deg(moved.angle), [120])


def test_links_obey_their_limits() -> None:
    there = _keypoints([(50, 50, 2.0, 0)])
    for row, linked in [
        ((51, 50, 2.0, 0), True),
        ((51.6, 50, 2.0, 0), False),  # 1.5 pixels is the limit for small keypoints
        ((50, 50, 2.9, 0), True),
        ((50, 50, 3.1, 0), False),
        ((50, 50, 2.0, -29), True),
        ((50, 50, 2.0, 331), True),
        ((50, 50, 2.0, 31), False),
        ((np.nan, 50, 2.0, 0), False),
    ]:
        assert len(mutual_links(_keypoints([row]), there)) == linked, row
    # 0.7 sigma of the coarser one is the limit for large ones
    assert len(mutual_links(_keypoints([(55.5, 50, 6.0, 0)]), _keypoints([(50, 50, 8.0, 0)])))
    assert not len(mutual_links(_keypoints([(55.7, 50, 6.0, 0)]), _keypoints([(50, 50, 8.0, 0)])))


def test_links_are_one_to_one_and_nearest() -> None:
    here = _keypoints([(50, 50, 2, 0), (50.8, 50, 2, 0), (80, 80, 2, 0)])
    there = _keypoints([(50.7, 50, 2, 0), (80, 80, 2, 90), (80, 80.2, 2, 0)])
    assert sorted(map(tuple, mutual_links(here, there))) == [(1, 0), (2, 2)]
    assert mutual_links(here, _keypoints([])).shape == (0, 2)


def test_groups_over_three_views() -> None:
    shift = [np.eye(3), np.array([[1, 0, 100.0], [0, 1, 0], [0, 0, 1]]), np.array([[1, 0, 0], [0, 1, 50.0], [0, 0, 1]])]
    views = [
        _keypoints([(10, 10, 2, 0), (30, 30, 2, 0), (200, 200, 2, 0)]),
        _keypoints([(130, 30, 2, 0), (110, 10, 2, 0)]),
        _keypoints([(10, 60.5, 2, 0)]),
    ]
    groups = sorted(g.tolist() for g in group(views, shift))
    assert groups == [[[0, 0], [1, 1], [2, 0]], [[0, 1], [1, 0]]]


def test_select_leaves_no_twins_and_spreads_scales() -> None:
    rows = [(10.0 * i, 10.0, 1.2, 0.0) for i in range(100)] + [(20.0 * i, 300.0, 8.0, 0.0) for i in range(10)]
    rows += [(0.5, 10.0, 1.3, 5.0), (0.5, 10.0, 1.3, 90.0)]  # the first is a twin of row 0, the second is not
    points = _keypoints(rows)
    groups = [np.array([[0, i], [1, i]]) for i in range(len(rows))]
    rng = np.random.default_rng(0)
    everything = select(groups, [points, points], [np.eye(3)] * 2, 1000, rng)
    kept = {int(g[0, 1]) for g in everything}
    assert len(kept & {0, 110}) == 1
    assert kept >= set(range(1, 110)) | {111}
    few = [int(g[0, 1]) for g in select(groups, [points, points], [np.eye(3)] * 2, 20, rng)]
    assert len(few) == 20
    assert sum(100 <= i < 110 for i in few) >= 3  # a tenth of the labels are large: drawn more often than that


def test_turn_between() -> None:
    np.testing.assert_allclose(turn_between(np.array([3.1, 0.2]), np.array([-3.1, -0.2])), [2 * np.pi - 6.2, 0.4])


# --- the build


def test_labels_show_the_same_thing(built, correlate) -> None:
    labels = np.asarray(built.labels)
    first, second = np.nonzero(np.triu(labels[:, None] == labels[None], k=1))
    inset = round(64 * (1 - 1 / 1.5) / 2)
    plain = built.patches[:, inset:-inset, inset:-inset]
    same = correlate(plain[first], plain[second])
    assert len(same) > 100
    assert np.median(same) > 0.5
    different = labels[first] != labels[np.roll(second, 7)]
    assert np.median(correlate(plain[first], plain[np.roll(second, 7)])[different]) < 0.1


def test_bookkeeping(built) -> None:
    labels, counts = np.unique(built.labels, return_counts=True)
    np.testing.assert_array_equal(labels, np.arange(len(labels)))
    assert counts.min() >= 2
    assert [s["name"] for s in built.meta["sources"]] == ["a.png", "sub/b.jpg"]
    photo = np.asarray(built.cam_ids) // 4
    assert set(photo) == {0, 1}
    for label in labels:
        rows = np.asarray(built.labels) == label
        assert len(set(photo[rows])) == 1
        assert len(set(built.image_ids[rows])) == rows.sum()  # one patch a view
    assert max(len(np.unique(np.asarray(built.labels)[photo == p])) for p in (0, 1)) <= 120


def test_seeds(photos, built, tmp_path: Path) -> None:
    settings = {"num_views": 4, "max_labels": 120}
    build_photos(photos, tmp_path / "same", PhotoSettings(seed=5, **settings), exclude=["left_out_*"])
    np.testing.assert_array_equal(PatchStore.open(tmp_path / "same").patches, built.patches)
    build_photos(photos, tmp_path / "other", PhotoSettings(seed=6, **settings), exclude=["left_out_*"])
    assert not np.array_equal(PatchStore.open(tmp_path / "other").patches[:50], built.patches[:50])


def test_a_photo_gives_the_same_patches_in_any_company(photos, built, tmp_path: Path) -> None:
    build_photos(
        photos, tmp_path / "s", PhotoSettings(num_views=4, max_labels=120, seed=5), exclude=["left_out_*", "a.png"]
    )
    alone = PatchStore.open(tmp_path / "s")
    np.testing.assert_array_equal(alone.patches, built.patches[np.asarray(built.cam_ids) >= 4])


def test_render_view_maps_the_photo(textures) -> None:
    rng = np.random.default_rng(0)
    photo = np.repeat(textures(240, 320, seed=2)[:, :, None], 3, axis=2).astype(np.uint8)
    homography = np.array([[1, 0, 20.0], [0, 1, 10.0], [0, 0, 1]])
    view = render_view(photo, homography, rng)
    a, b = view.image[10:, 20:].ravel(), photo[:-10, :-20, 0].ravel()
    assert np.corrcoef(a, b)[0, 1] > 0.8


def test_bad_input_is_named(photos, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        build_photos(tmp_path / "nowhere", tmp_path / "s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        build_photos(tmp_path / "empty", tmp_path / "s")
    with pytest.raises(DataError, match="every image is excluded"):
        build_photos(photos, tmp_path / "s", exclude=["*"])
    with pytest.raises(UsageError, match="at least 2 views"):
        PhotoSettings(num_views=1)
    (tmp_path / "bad").mkdir()
    cv2.imwrite(str(tmp_path / "bad" / "x.jpg"), np.full((120, 160), 127, np.uint8))
    with pytest.raises(DataError, match="no keypoint was found again"):
        build_photos(tmp_path / "bad", tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("progressive", [0, 1])
def test_a_photo_that_is_cut_short_is_named(photos, tmp_path: Path, progressive: int) -> None:
    """OpenCV would fill it up with gray."""
    gray = cv2.imread(str(photos / "a.png"), cv2.IMREAD_GRAYSCALE)
    whole = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[1].tobytes()
    thumbnail = cv2.imencode(".jpg", gray[::8, ::8])[1].tobytes()  # has an end marker of its own
    whole = whole[:2] + b"\xff\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + whole[2:]
    photo = tmp_path / "photos" / "x.jpg"
    photo.parent.mkdir()
    photo.write_bytes(whole + b"what some cameras append")
    assert np.abs(read_bgr(photo)[:, :, 0].astype(int) - gray).mean() < 5
    for length in (len(whole) * 3 // 4, len(whole) - 2):
        photo.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"x\.jpg is cut short"):
            read_bgr(photo)
    for length in (len(thumbnail) + 20, 2, 0):  # before the picture begins
        photo.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"x\.jpg does not decode"):
            read_bgr(photo)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_photo_that_cannot_be_used_costs_the_others_nothing(
    photos, tmp_path: Path, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = PhotoSettings(num_views=2, max_labels=20)
    build_photos(photos, tmp_path / "alone", settings)
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "cut.jpg").write_bytes(b"\xff\xd8 no image")
    cv2.imwrite(str(folder / "narrow.png"), np.zeros((500, 63), np.uint8))
    (folder / "._a.png").write_bytes(b"not a picture at all")
    built = build_photos(folder, tmp_path / "store", settings, num_workers=num_workers)
    alone, store = (PatchStore.open(tmp_path / name) for name in ("alone", "store"))
    np.testing.assert_array_equal(np.asarray(alone.patches), np.asarray(store.patches))
    assert built.source == {"photographs": 3}
    assert f"left out: image {folder / 'cut.jpg'} does not decode" in caplog.text
    assert f"left out: image {folder / 'narrow.png'} is 63 x 500 pixels, smaller than a patch" in caplog.text
    assert "2 photograph(s) left out" in caplog.text


def test_only_photos_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(DataError, match=r"1 of 1 photographs cannot be used"):
        build_photos(tmp_path / "photos", tmp_path / "store")
    assert not (tmp_path / "store").exists()
