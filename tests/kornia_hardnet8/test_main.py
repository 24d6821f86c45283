"""``python -m kornia_hardnet8``: what it prints, what it writes, how it fails."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kornia.io import ImageLoadType, load_image

from kornia_hardnet8 import HardNet8, HardNet8Feature, __version__, example_pair
from kornia_hardnet8.__main__ import run_eval
from kornia_hardnet8.cli import features_of, main

ROOT = Path(__file__).parents[2]
DAY, NIGHT = map(str, example_pair())
FEW = ["--keypoints", "80", "--max-side", "320"]


def test_match_prints_counts_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drawn.png"
    assert main(["match", DAY, DAY, "--out", str(out), *FEW]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "square_day.jpg and square_day.jpg: 80 matches, 80 inliers"
    assert lines[1] == f"picture: {out}"
    assert load_image(out, ImageLoadType.RGB8).shape == (3, 512, 1280)
    assert [path.name for path in tmp_path.iterdir()] == ["drawn.png"]


def test_match_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["match", DAY, DAY, "--json", *FEW]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = np.array(report["matches"])
    assert rows.shape == (80, 4)
    np.testing.assert_array_equal(rows[:, :2], rows[:, 2:])
    assert len(report["inliers"]) == 80


def test_describe_to_npz(tmp_path: Path) -> None:
    out = tmp_path / "f.npz"
    assert main(["describe", DAY, "--out", str(out), "--dim", "64", *FEW]) == 0
    feature = HardNet8Feature(80, descriptor=HardNet8(True, output_dim=64), max_side=320, precision="auto")
    expected = features_of(Path(DAY), feature)
    with np.load(out) as arrays:
        assert set(arrays) == set(expected)
        for key, value in expected.items():
            np.testing.assert_array_equal(arrays[key], value)
    assert expected["keypoints"].shape == (80, 2)
    assert expected["image_size"].tolist() == [640, 512]


def test_describe_several_as_hloc_reads_them(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    out = tmp_path / "f.h5"
    assert main(["describe", DAY, NIGHT, "--out", str(out), *FEW]) == 0
    with h5py.File(out) as file:
        assert sorted(file) == ["square_day.jpg", "square_night.jpg"]
        group = file["square_night.jpg"]
        assert group["descriptors"].shape == (128, 80)
        np.testing.assert_allclose(np.linalg.norm(group["descriptors"][:], axis=0), 1, atol=1e-5)
        assert (np.diff(group["scores"][:]) <= 0).all()


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".png"])
def test_a_file_that_has_no_room_is_one_line(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["match", DAY, DAY] if suffix == ".png" else ["describe", DAY, *FEW]
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        code = main([*words, "--out", str(tmp_path / f"f{suffix}")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert re.fullmatch(rf"error: cannot write .*f\{suffix}: .*File too large.*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["match", DAY], 2, "two photographs, got 1"),
        (["match", DAY, NIGHT, "--out", "x.gif"], 2, ".png, .jpg or .tif"),
        (["match", os.fsdecode(b"n\xe9.jpg"), NIGHT], 2, r"n\xe9.jpg is not UTF-8: rename it"),
        (["match", "no.jpg", NIGHT], 1, "no.jpg is not there"),
        (["describe", DAY, NIGHT, "--out", "x.npz"], 2, "take .h5"),
        (["describe", DAY, DAY, "--out", "x.h5"], 2, "two photographs have the name square_day.jpg"),
        (["describe", DAY, "--out", "x.txt"], 2, ".npz or .h5"),
        (["match", DAY, NIGHT, "--weights", "no.safetensors"], 1, "no weight file"),
        (["match", DAY, NIGHT, "--dim", "600"], 2, "600"),
        (["match", DAY, NIGHT, "--detector", "dof"], 2, "did you mean dog?"),
    ],
)
def test_errors_are_one_line(words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("error: ") and text in captured.err


def test_what_is_missing_for_h5_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert main(["describe", "no.jpg", "--out", str(tmp_path / "f.h5"), *FEW]) == 1
    assert "h5py is not installed: pip install 'h5py<4,>=3.10' (in a checkout, " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["match", DAY, NIGHT, "--detektor", "dog"])
    assert capsys.readouterr().err == (
        "error: python -m kornia_hardnet8: there is no option --detektor; did you mean --detector?\n"
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("package", ["eval", "train"])
def test_aliases_run_the_checkout_not_what_lies_in_the_folder(package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text("print('mine')")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    scripts = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].split("\n") if line)
    module, _, function = scripts[f"kornia-hardnet8-{package}"].partition(":")
    program = f"import sys, {module} as m; sys.argv = ['alias', '--version']; m.{function}()"
    command = [sys.executable, "-P", "-c", program]  # as a script, without the folder on the path
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n"), done.stderr


def test_aliases_of_a_wheel_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"eval is no part of the wheel: in a checkout, pip install -e '\.\[eval\]'"):
        run_eval()
