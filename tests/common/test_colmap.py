from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from common.colmap import is_distorted, is_model, open_model, read_model
from kornia_hardnet8.errors import DataError, MissingFileError
from tests.common.colmap_files import NAMES, Tiny

WRITERS = pytest.mark.parametrize("write", [Tiny.binary, Tiny.text], ids=["binary", "text"])
Writer = Callable[[Tiny, Path], Path]


@WRITERS
def test_values(write: Writer, tmp_path: Path) -> None:
    model = read_model(write(Tiny(), tmp_path))
    assert [image.name for image in model.images] == sorted(NAMES)
    second, first, third = model.images
    np.testing.assert_allclose(first.R, np.eye(3))
    np.testing.assert_allclose(second.R, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-15)
    np.testing.assert_allclose(third.R, [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=1e-15)
    np.testing.assert_array_equal(second.t, [1, 2, 3])
    np.testing.assert_array_equal(first.xy, [[10, 11], [20, 21], [30.25, 31]])
    np.testing.assert_array_equal(first.point_ids, [7, -1, 9])
    assert (first.size, first.camera.model_name, list(first.camera.params)) == ((64, 48), "PINHOLE", [60, 61, 32, 24])
    np.testing.assert_array_equal(model.point_ids, [7, 9, 12])
    np.testing.assert_array_equal(model.xyz, [[1, 0.5, 4], [0, 0, 5], [0, 0, 1]])


@pytest.mark.parametrize("text", [False, True])
def test_what_colmap_writes_is_read_as_colmap_reads_it(text: bool, tmp_path: Path) -> None:
    """A synthetic model of two rigs of two cameras."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 2, 2, 3, 40
    theirs = pycolmap.synthesize_dataset(options)
    (theirs.write_text if text else theirs.write_binary)(tmp_path)
    model = read_model(tmp_path)
    by_name = {image.name: image for image in theirs.images.values()}
    assert len(model.images) == len(by_name) == 12
    for image in model.images:
        expected = by_name[image.name]
        np.testing.assert_allclose(image.R, expected.cam_from_world().rotation.matrix(), atol=1e-12)
        np.testing.assert_allclose(image.t, expected.cam_from_world().translation, atol=1e-12)
        np.testing.assert_array_equal(image.xy, np.array([p.xy for p in expected.points2D]))
        ids = [p.point3D_id if p.has_point3D() else -1 for p in expected.points2D]
        assert image.point_ids.tolist() == ids
        assert (image.camera.model, image.size) == (
            expected.camera.model,
            (expected.camera.width, expected.camera.height),
        )
        np.testing.assert_array_equal(image.camera.params, expected.camera.params)
    assert model.point_ids.tolist() == sorted(theirs.points3D)
    np.testing.assert_array_equal(model.xyz, [theirs.points3D[i].xyz for i in model.point_ids.tolist()])


def test_text_as_other_programs_write_it(tmp_path: Path) -> None:
    """Windows' line ends, a byte order mark, names with blanks, numbers of a few digits."""
    tiny = Tiny(poses=[[1, 0, 0, 0, 0, 0, 0], [0.707, 0, 0.707, 0, 1, 2, 3], [0.707, 0, 0, -0.707, -1.5, 0, 0]])
    tiny.text(tmp_path, newline="\r\n")
    for path in tmp_path.glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"5", b"5.0e+000") if path.stem == "cameras" else
                         b"\xef\xbb\xbf" + path.read_bytes())  # fmt: skip
    model = read_model(tmp_path)
    assert [image.name for image in model.images] == sorted(NAMES)
    for image in model.images:
        np.testing.assert_allclose(image.R @ image.R.T, np.eye(3), atol=1e-14)


def test_images_without_keypoints(tmp_path: Path) -> None:
    """Known poses alone: an empty second line is no keypoint, a missing one would hide the next image."""
    tiny = Tiny(seen=[[], [], []], points={})
    assert [len(image.xy) for image in read_model(tiny.text(tmp_path / "a")).images] == [0, 0, 0]
    with pytest.raises(DataError, match=r"images\.txt line 3: expected the keypoints of image 'b\.png' .* two lines"):
        read_model(tiny.text(tmp_path / "b", second_lines=False))


@WRITERS
def test_a_lens_of_nearly_parallel_rays_as_colmap_makes_them(write: Writer, tmp_path: Path) -> None:
    params = [20_259_955.04 / 800 * 64, 32.0, 24.0, -24_830_885.477]  # 25,325 long sides, of a photograph of a statue
    model = read_model(write(Tiny(camera=("SIMPLE_RADIAL", 2, params)), tmp_path))
    assert all(list(image.camera.params) == params for image in model.images)


@WRITERS
@pytest.mark.parametrize(
    ("tiny", "message"),
    [
        (Tiny(size=(0, 48)), "no size that an image can have"),
        (Tiny(size=(2**33, 48)), "no size that an image can have"),
        (Tiny(camera=("PINHOLE", 1, [float("nan"), 61, 32, 24])), "parameters that no lens has"),
        (Tiny(camera=("PINHOLE", 1, [60, 61, float("inf"), 24])), "parameters that no lens has"),
        (Tiny(camera=("PINHOLE", 1, [60, -61, 32, 24])), "parameters that no lens has"),
        (Tiny(camera=("PINHOLE", 1, [1e-150, 61, 32, 24])), "parameters that no lens has"),
        (Tiny(camera=("PINHOLE", 1, [60, 1e9, 32, 24])), "parameters that no lens has"),
        (Tiny(camera=("PINHOLE", 1, [60, 61, 4e9, 24])), "principal point far outside its images"),
        (Tiny(camera=("PINHOLE", 1, [60, 61, 32])), "expected 4 parameters|cut short"),
        (Tiny(names=["a.png", "a.png", "b.png"]), "image 'a.png' is listed twice"),
        (Tiny(names=["a.png", "/etc/b.png", "c.png"]), "a path below the folder"),
        (Tiny(names=["a.png", "../b.png", "c.png"]), "a path below the folder"),
        (Tiny(poses=[[2, 0, 0, 0, 0, 0, 0]] * 3), "no rotation"),
        (Tiny(poses=[[1, 0, 0, 0, 0, float("nan"), 0]] * 3), "pose that is not finite"),
        (Tiny(poses=[[0, 0, 0, 0, 0, 0, 0]] * 3), "no rotation"),
        (Tiny(seen=[[(1, 2, 8)], [], []]), "names the point 8, which is not there"),
        (Tiny(seen=[[(1, 2, -2)], [], []]), "names the point -2, which is not there"),
        (Tiny(seen=[[(1, float("nan"), 7)], [], []]), "keypoint that is not finite"),
        (Tiny(seen=[[(1, -1e300, 7)], [], []]), "keypoint that is not finite, or beyond"),
        (Tiny(points={7: [0, 0, 1], 9: [0, float("inf"), 1]}), "position that is not finite"),
        (Tiny(points={7: [0, 0, 1], 9: [0, 1e300, 1]}), "position that is not finite, or beyond"),
        (Tiny(poses=[[1, 0, 0, 0, 0, 1e300, 0]] * 3), "pose that is not finite, or beyond"),
    ],
)
def test_what_no_model_has(write: Writer, tiny: Tiny, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_model(write(tiny, tmp_path))


def test_counts_that_lie(tmp_path: Path) -> None:
    """Too large, too small, and of keypoints: nothing is reserved for them."""
    Tiny().binary(tmp_path)
    for name, at in (("cameras", 0), ("images", 0), ("points3D", 0), ("images", 8 + 64 + len(NAMES[0]) + 1)):
        path = tmp_path / f"{name}.bin"
        whole = path.read_bytes()
        (count,) = struct.unpack_from("<Q", whole, at)
        assert count in (1, 3)
        for wrong in (count - 1, count + 1, 2**40, 2**63, 2**64 - 1):
            path.write_bytes(whole[:at] + struct.pack("<Q", wrong) + whole[at + 8 :])
            with pytest.raises(DataError):
                read_model(tmp_path)
        path.write_bytes(whole)
    assert len(read_model(tmp_path).images) == 3


def test_every_cut_is_seen(tmp_path: Path) -> None:
    Tiny().binary(tmp_path)
    for path in sorted(tmp_path.glob("*.bin")):
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match=r"\.bin is damaged or cut short|a track names"):
                read_model(tmp_path)
        path.write_bytes(whole + b"\0")
        with pytest.raises(DataError, match="1 bytes more than its counts say"):
            read_model(tmp_path)
        path.write_bytes(whole)


@WRITERS
def test_any_damage_is_one_line(write: Writer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write(Tiny(), tmp_path)
    for path in sorted(tmp_path.iterdir()):
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 2)] = rng.integers(0, 256, 2)
            path.write_bytes(damaged.tobytes())
            try:
                read_model(tmp_path)
            except DataError as error:
                assert "\n" not in str(error)
        path.write_bytes(whole.tobytes())


def test_text_lines_are_named(tmp_path: Path) -> None:
    for name, line, message in (
        ("cameras", "1 ODD 64 48 1 2", r"cameras\.txt line 3: camera 1 is ODD: expected a kind that is known"),
        ("cameras", "2 PINHOLE x 48 1 2 3 4", r"cameras\.txt line 3: expected camera, kind"),
        ("cameras", "1 PINHOLE 64 48 60 60 32 24", "camera 1 is listed twice"),
        ("images", "9 1 0 0 0 0 0 0 1", r"images\.txt line 8: expected image, quaternion"),
        ("images", "9 1 0 0 0 0 0 0 5 x.png", "names the camera 5"),
        ("images", f"{10**30} 1 0 0 0 0 0 0 1 x.png", "expected a number of the image from 0 to 4294967295"),
        ("cameras", "-2 PINHOLE 64 48 60 60 32 24", "expected a number of the camera from 0"),
        ("points3D", "9 0 0 1 1 1 1 0", "a point is listed twice"),
        ("points3D", "-3 0 0 1 1 1 1 0", "the number -3"),
        ("points3D", "4 0 0 1 1 1 1 0 1", "pairs of image and keypoint"),
        ("points3D", "4 0 0 1 1 1 1 0 1 7", "a track names"),
        ("points3D", "4 0 0 1 1 1 1 0 99 0", "a track names"),
        ("points3D", f"{10**30} 0 0 1 1 1 1 0", "too large"),
    ):
        Tiny().text(tmp_path)
        path = tmp_path / f"{name}.txt"
        path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_model(tmp_path)


@WRITERS
def test_a_name_that_is_not_utf8(write: Writer, tmp_path: Path) -> None:
    write(Tiny(), tmp_path)
    path = next(tmp_path.glob("images.*"))
    path.write_bytes(path.read_bytes().replace("a ä".encode(), b"a \xe4x"))
    with pytest.raises(DataError, match=r"a name that is not UTF-8 \(.*a \\xe4x\.png\)"):
        read_model(tmp_path)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"model folder .*nowhere"):
        read_model(tmp_path / "nowhere")
    Tiny().binary(tmp_path)
    (tmp_path / "points3D.bin").unlink()
    assert not is_model(tmp_path)
    with pytest.raises(DataError, match="holds no COLMAP model"):
        read_model(tmp_path)


def test_images_are_there_and_of_the_size(tmp_path: Path) -> None:
    model, images = Tiny().binary(tmp_path / "model"), Tiny().pictures(tmp_path / "images")
    assert len(open_model(model, images).images) == 3
    Tiny(size=(64, 47)).pictures(images)
    with pytest.raises(DataError, match=r"a ä\.png is 64 x 47 pixels, the model says 64 x 48"):
        open_model(model, images)
    (images / "b.png").unlink()
    with pytest.raises(MissingFileError, match=r"images of the model .* b\.png"):
        open_model(model, images)
    with pytest.raises(MissingFileError, match=r"image folder .*nowhere"):
        open_model(model, tmp_path / "nowhere")
    one = Tiny(names=["b.png"], poses=[[1, 0, 0, 0, 0, 0, 0]], seen=[[]]).binary(tmp_path / "one")
    with pytest.raises((DataError, MissingFileError)):
        open_model(one, images)


@pytest.mark.parametrize(
    ("kind", "params", "distorted"),
    [
        ("PINHOLE", [60, 60, 32, 24], False),
        ("SIMPLE_RADIAL", [60, 32, 24, 0], False),
        ("SIMPLE_RADIAL", [60, 32, 24, 0.01], True),
        ("OPENCV_FISHEYE", [60, 60, 32, 24, 0, 0, 0, 0], True),
        ("SIMPLE_FISHEYE", [60, 32, 24], True),
        ("FISHEYE", [60, 60, 32, 24], True),
    ],
)
def test_a_fisheye_is_no_pinhole_whatever_its_numbers_are(kind: str, params: list[float], distorted: bool) -> None:
    assert is_distorted(pycolmap.Camera(model=kind, width=64, height=48, params=params)) is distorted


def test_pictures_are_saved_after_pycolmap_was_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from common.colmap import load_pycolmap; load_pycolmap(); from PIL import Image; "
        "Image.new('L', (8, 8)).save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "gray.png"], check=True, capture_output=True)
