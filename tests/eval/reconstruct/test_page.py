"""The page of a model: what its script reads, against the model itself; and the page in a real browser."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from eval.pages.render import command_line
from eval.reconstruct import page as module
from eval.reconstruct.page import choose_points, embedded_photos, model_data, write_model_page
from eval.reconstruct.undistort import undistort

SIZE = (320, 240)
MANY = "<b>&amp;.jpg"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[pycolmap.Reconstruction, Path]:
    """A model of 5 cameras without noise, and photographs in one colour each; the second is to be seen turned."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 1, 1, 5, 60
    options.camera_width, options.camera_height = SIZE
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_RADIAL
    options.camera_params = [280.0, 160.0, 120.0, 0.0]
    pycolmap.set_random_seed(0)
    model = pycolmap.synthesize_dataset(options)
    for index, point in model.points3D.items():
        point.color = np.array([index % 250, 200, 100], np.uint8)
    folder = tmp_path_factory.mktemp("model") / "images"
    folder.mkdir()
    for k, index in enumerate(model.reg_image_ids()):
        model.image(index).name = MANY if k == 0 else f"{k}.jpg"
        picture = Image.new("RGB", SIZE, (40 * k, 100, 200))
        exif = picture.getexif()
        exif[0x0112] = 6 if k == 1 else 1
        picture.save(folder / model.image(index).name, exif=exif)
    return model, folder


@pytest.fixture
def page(scene: tuple[pycolmap.Reconstruction, Path], tmp_path: Path) -> Path:
    model, folder = scene
    return write_model_page(tmp_path / "model.html", model, folder, "a <model>", ["<left>.jpg"], "Made by a test.")


def data_of(page: str) -> dict[str, Any]:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    return json.loads(text)


def unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_points_lie_where_the_photographs_show_them(scene, orientation: int) -> None:
    """From a camera through the corners of its photograph: u and v of a point are the shares that the page gives."""
    model, _ = scene
    names = [model.image(i).name for i in model.reg_image_ids()]
    data = model_data(model, dict.fromkeys(names, orientation), choose_points(model))
    xyz = unpacked(data["points"]["xyz"], "<f4").reshape(-1, 3)
    assert len(xyz) == data["points"]["count"] == 60
    centres = np.array([camera["centre"] for camera in data["cameras"]])
    assert 0.7 < np.abs(np.vstack([xyz, centres])).max() < 1.0
    seen = 0
    for camera in data["cameras"]:
        index = unpacked(camera["index"], "<u4")
        shares = unpacked(camera["at"], "<u2").reshape(-1, 2) / 65535
        rays = np.array(camera["corners"])
        basis = np.column_stack([rays[0], rays[1] - rays[0], rays[3] - rays[0]])
        depth, u, v = np.linalg.solve(basis, (xyz[index] - camera["centre"]).T)
        assert (depth > 0).all()
        np.testing.assert_allclose(np.column_stack([u, v]) / depth[:, None], shares, atol=2e-4)
        np.testing.assert_allclose(rays[0] + rays[2], rays[1] + rays[3], atol=1e-4)
        ratio = np.linalg.norm(rays[1] - rays[0]) / np.linalg.norm(rays[3] - rays[0])
        assert ratio == pytest.approx(4 / 3 if orientation < 5 else 3 / 4, abs=1e-3)
        seen += len(index)
    assert seen == model.compute_num_observations()


def test_colours_errors_and_counts_of_points(scene) -> None:
    model, _ = scene
    chosen = choose_points(model)
    model.points3D[chosen[3]].color = np.array([1, 2, 3], np.uint8)
    model.points3D[chosen[3]].error = 2.0
    data = model_data(model, {model.image(i).name: 1 for i in model.reg_image_ids()}, chosen)["points"]
    assert unpacked(data["rgb"], "u1")[9:12].tolist() == [1, 2, 3]
    assert unpacked(data["error"], "u1")[3] == 128  # 4 px are 255
    lengths = [model.points3D[i].track.length() for i in chosen]
    assert unpacked(data["seen"], "u1").tolist() == lengths


def test_the_page_loads_nothing_and_escapes_names(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|<link [^>]*href=\"(?!data:)|src=\"(?!data:)", text)
    assert "default-src 'none'" in text
    assert "<h1>a &lt;model&gt;</h1>" in text
    assert "&lt;left&gt;.jpg" in text
    assert "<b>" not in text
    assert "5 of 6 photographs, 60 points" in text
    assert "Made by a test." in text
    data = data_of(text)
    assert [camera["name"] for camera in data["cameras"]] == [MANY, "1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert [picture_of(p).shape for p in data["pictures"]] == [(240, 320, 3), (320, 240, 3), *[(240, 320, 3)] * 3]
    assert picture_of(data["pictures"][3])[0, 0] == pytest.approx([200, 100, 120], abs=4)


def picture_of(address: str) -> np.ndarray:
    content = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def test_a_page_stays_small(scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = scene
    assert choose_points(model) == sorted(model.point3D_ids())
    monkeypatch.setattr(module, "_MAX_POINTS", 20)
    assert len(choose_points(model)) == 20
    monkeypatch.setattr(module, "_MAX_OBSERVATIONS", model.compute_num_observations() / 6)
    assert choose_points(model)[::9] == sorted(model.point3D_ids())[::59][:2]
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    paths = [tmp_path / f"{k}.png" for k in range(6)]
    for path in paths:
        cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 1))
    large, small = (embedded_photos(paths, [1] * 6, limit) for limit in (2_000_000, 60_000))
    assert picture_of(large[0]).shape == (300, 400, 3)
    assert 20_000 < sum(map(len, small)) <= 60_000
    assert picture_of(small[0]).shape[1] in module._PHOTO_SIDES_PX


def test_undistorted_photographs_lie_beside_their_model(scene, tmp_path: Path) -> None:
    model, folder = scene
    (tmp_path / "sparse").mkdir()
    model.write(tmp_path / "sparse")
    out = undistort(tmp_path / "sparse", folder, tmp_path / "undistorted")
    assert sorted(path.name for path in out.iterdir()) == ["images", "sparse"]
    plain = pycolmap.Reconstruction(out / "sparse" / "0")
    assert {camera.model_name for camera in plain.cameras.values()} == {"PINHOLE"}
    for image in plain.images.values():
        picture = cv2.imread(str(out / "images" / image.name), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        assert picture.shape[:2] == (image.camera.height, image.camera.width)


def test_a_command_is_shown_as_it_is_typed() -> None:
    assert command_line(["/x/eval/__main__.py", "match", "a b.jpg"]) == "python -m eval match 'a b.jpg'"
    assert command_line(["/usr/bin/pytest", "-q"]) == "/usr/bin/pytest -q"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_the_model_and_chooses_cameras(page: Path, browser, width: int) -> None:
    """A real browser: points on the screen, a click on a camera, its partners, a pair, the keyboard."""
    probe = """
      const pixels = () => {
        const shown = new Uint8Array(4 * canvas.width * canvas.height);
        drawNow();
        gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, shown);
        return new Set(new Uint32Array(shown.buffer)).size;
      };
      const colours = pixels();
      canvas.setPointerCapture = () => {};
      const [x, y] = onScreen(cameras[2].centre);
      for (const kind of ["pointerdown", "pointerup"]) {
        canvas.dispatchEvent(new PointerEvent(kind, { clientX: x + canvas.getBoundingClientRect().left,
          clientY: y + canvas.getBoundingClientRect().top, pointerId: 1, isPrimary: true }));
      }
      const clicked = cameras[state.chosen]?.name;
      const partners = byId("about").querySelectorAll(".photos button").length;
      byId("about").querySelector(".photos button").click();
      const pair = state.other !== null && byId("about").querySelector("p").textContent;
      canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
      return [colours > 20, clicked, partners, /^[0-9]+ points? of the model seen in both.$/.test(pair), state.chosen,
              document.documentElement.scrollWidth <= innerWidth, byId("about").textContent.includes("<b>&amp;.jpg")];
    """
    assert browser(page, probe, width) == [True, "2.jpg", 4, True, None, True, True]
