import csv
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.core import viz
from eval.core.viz import draw_accuracy_curves, draw_judged_matches, draw_matches
from kornia_hardnet8.errors import DataError

WHITE = np.full((120, 160), 255, np.uint8)
TALL = np.full((200, 100, 3), 255, np.uint8)


def count_color(path: Path, color: str) -> int:
    rgb = cv2.imread(str(path))[..., ::-1].astype(int)
    wanted = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)])
    return int((np.abs(rgb - wanted).max(-1) < 40).sum())


def test_right_and_wrong_matches_have_their_colours(tmp_path: Path) -> None:
    kpts = np.array([[20.0, 20], [20, 60], [20, 100]])
    path = tmp_path / "m.png"
    matches = np.array([[0, 0], [1, 1], [2, 2]])
    found = draw_matches(path, WHITE, TALL, kpts, kpts, matches, [0.5, 3.0, np.nan])
    assert (found.num_matches, found.num_right) == (3, 2)
    picture = cv2.imread(str(path))
    assert picture.shape[1] == pytest.approx(160 + 8 + 100, abs=2)
    assert count_color(path, viz.GREEN) > 2 * count_color(path, viz.VERMILION) > 0
    assert count_color(path, viz.BLUE) == 0
    # the line of match 0 runs level from (20, 20) to the other image, 35 pixels of caption above
    band = picture[35 + 18 : 35 + 23, 40:150, ::-1].astype(int)
    darkest = band[band.sum(2).argmin(0), np.arange(band.shape[1])]  # of an antialiased line
    np.testing.assert_allclose(darkest, np.broadcast_to([0, 0x9E, 0x73], darkest.shape), atol=70)


def test_unknown_errors_are_drawn_alike(tmp_path: Path) -> None:
    found = draw_matches(tmp_path / "m.png", WHITE, WHITE, [[5.0, 5]], [[50.0, 9]], [[0, 0]])
    assert found.num_right is None
    assert count_color(tmp_path / "m.png", viz.BLUE) > 0


def test_no_match_and_many_matches(tmp_path: Path) -> None:
    assert draw_matches(tmp_path / "a.png", WHITE, WHITE, [], [], np.zeros((0, 2)), []).num_right == 0
    kpts = np.random.default_rng(0).uniform(0, 100, (500, 2))
    matches = np.repeat(np.arange(500)[:, None], 2, 1)
    found = draw_matches(tmp_path / "b.png", WHITE, WHITE, kpts, kpts, matches, np.zeros(500), max_lines=20)
    assert (found.num_matches, found.num_right) == (500, 500)


def test_wrong_arguments_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="png"):
        draw_matches(tmp_path / "m.jpg", WHITE, WHITE, [], [], [])
    with pytest.raises(DataError, match="1 errors for 0 matches"):
        draw_matches(tmp_path / "m.png", WHITE, WHITE, [], [], [], [1.0])
    with pytest.raises(DataError, match="no curve"):
        draw_accuracy_curves(tmp_path / "c.png", {})
    assert not list(tmp_path.iterdir())


def test_curves_save_their_data(tmp_path: Path) -> None:
    path = draw_accuracy_curves(tmp_path / "c.png", {"a": [0.5, 1.5, np.inf, 20], "b": [9.5]}, title="t")
    assert cv2.imread(str(path)).ndim == 3
    rows = list(csv.reader((tmp_path / "c.csv").open()))
    assert rows[0][1:] == ["a", "b"]
    assert [float(row[1]) for row in rows[1:]] == [0.25] + [0.5] * 9
    assert [float(row[2]) for row in rows[1:]] == [0.0] * 9 + [1.0]


def test_import_is_light() -> None:
    code = "import eval.core.viz, sys; assert 'matplotlib' not in sys.modules and 'cv2' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_inliers_take_the_part_of_right_matches(tmp_path: Path) -> None:
    kpts = np.array([[20.0, 20], [20, 60], [20, 90]])
    matches = np.repeat(np.arange(3)[:, None], 2, 1)
    found = draw_matches(tmp_path / "m.png", WHITE, WHITE, kpts, kpts, matches, inliers=[True, False, True])
    assert found.num_right == 2
    assert count_color(tmp_path / "m.png", viz.GREEN) > count_color(tmp_path / "m.png", viz.VERMILION) > 0
    with pytest.raises(DataError, match="not both"):
        draw_matches(tmp_path / "n.png", WHITE, WHITE, kpts, kpts, matches, [0, 0, 0], inliers=[True] * 3)
    with pytest.raises(DataError, match="2 inlier flags for 3 matches"):
        draw_matches(tmp_path / "n.png", WHITE, WHITE, kpts, kpts, matches, inliers=[True] * 2)


def test_true_errors_colour_inliers_and_rejected_matches(tmp_path: Path) -> None:
    kpts = np.array([[20.0, 20], [20, 50], [20, 80]])
    matches = np.repeat(np.arange(3)[:, None], 2, 1)
    flags, errors = [True, True, False], [0.0, np.inf, 2.5]
    draw_judged_matches(tmp_path / "m.png", WHITE, WHITE, kpts, kpts, matches, flags, errors)
    picture = cv2.imread(str(tmp_path / "m.png"))[..., ::-1].astype(int)
    drawn = picture[:, : picture.shape[1] - 90]  # without the bar of colours
    for color, half in ((viz.GREEN, 0), (viz.VERMILION, 0), (viz.PALETTE[7], 1)):
        wanted = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)])
        close = (np.abs(drawn - wanted).max(-1) < 30).sum(axis=1)
        rows = np.flatnonzero(close > 20)
        assert len(rows) > 0
        assert set((rows >= len(drawn) // 2).tolist()) == {bool(half)}
    draw_judged_matches(tmp_path / "n.png", WHITE, TALL, kpts, kpts, np.zeros((0, 2)), [], [])
    with pytest.raises(DataError, match="1 flags and 3 errors for 3 matches"):
        draw_judged_matches(tmp_path / "o.png", WHITE, WHITE, kpts, kpts, matches, [True], errors)


@pytest.mark.parametrize("height", [120, 1024])
def test_title_and_captions_stand_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, height: int) -> None:
    figures = []
    monkeypatch.setattr(viz, "save_figure", lambda figure, path, dpi: figures.append(figure))
    image = np.full((height, 640), 255, np.uint8)
    draw_judged_matches(tmp_path / "m.png", image, image, [[1, 1]], [[1, 1]], [[0, 0]], [True], [0.0], title="A title")
    (figure,) = figures
    texts = [figure._suptitle, *(axes.title for axes in figure.axes[:2])]
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert boxes[0].y1 < figure.bbox.y1
