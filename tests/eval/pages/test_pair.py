"""The page of a pair: complete in itself, names escaped, and used in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from eval.pages.render import Candidates, Geometry, write_pair_page

AT = np.array([[10, 20, 12, 20], [100, 50, 90, 50], [200, 120, 40, 10], [150, 30, 160, 30]], np.float64)
RATIOS = np.array([0.5, 0.7, 0.8, 0.95])


@pytest.fixture
def page(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images = tuple(rng.integers(0, 256, (180, 240, 3), dtype=np.uint8) for _ in range(2))
    candidates = Candidates(AT, RATIOS, np.array([0.0, 0.0, 110.0, 0.0]), np.array([True, True, False, True]))
    same_row = Geometry("fundamental matrix", 1.0, np.array([[0, 0, 0], [0, 0, -1], [0, 1.0, 0]]))
    names = ("<b>one</b>.jpg", "two.jpg")
    return write_pair_page(tmp_path / "pair.html", names, images, candidates, same_row, 0.9, facts="<i>", made="&")


def test_it_loads_nothing_and_escapes_names(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|<link [^>]*href=\"(?!data:)|src=\"(?!data:)", text)
    assert "<h1>&lt;b&gt;one&lt;/b&gt;.jpg and two.jpg</h1>" in text
    assert "<b>one" not in text
    assert '<p class="soft">&lt;i&gt;</p>' in text
    assert text.count("data:image/jpeg;base64,") == 2


def test_no_match_and_no_geometry(tmp_path: Path) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    nothing = Candidates(np.zeros((0, 4)), np.zeros(0), np.zeros(0), np.zeros(0, bool))
    path = write_pair_page(tmp_path / "p.html", ("a", "b"), (image, image), nothing, Geometry("", 1.0, None), None)
    text = path.read_text(encoding="utf-8")
    assert '"fundamental": null' in text
    assert '"at": ""' in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_slider_boxes_keys_and_pointer(page: Path, browser, width: int) -> None:
    probe = """
      const said = () => byId("count").textContent;
      const first = said(), of = shown.length;
      slider.value = 1; slider.dispatchEvent(new Event("input"));
      const all = said();
      byId("outliers").click();
      const without = shown.length;
      byId("outliers").click();
      slider.value = 0.6; slider.dispatchEvent(new Event("input"));
      const few = said();
      slider.value = 1; slider.dispatchEvent(new Event("input"));
      canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
      const last = byId("said").textContent;
      const frame = canvas.getBoundingClientRect(), [x, y] = line(2)[1];
      canvas.dispatchEvent(new MouseEvent("click", { clientX: x + frame.left, clientY: y + frame.top }));
      const wrong = byId("said").textContent;
      return [first, of, all, without, few, last, wrong, document.documentElement.scrollWidth <= innerWidth];
    """
    assert browser(page, probe, width) == [
        "3 matches, 2 agree (67 %)",
        3,
        "4 matches, 3 agree (75 %)",
        3,
        "1 match, 1 agree (100 %)",
        "Ratio 0.95; 0.0 px from its epipolar line (white): an inlier at 1 px.",
        "Ratio 0.80; 110.0 px from its epipolar line (white): an outlier at 1 px.",
        True,
    ]
