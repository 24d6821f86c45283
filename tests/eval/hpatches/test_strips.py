from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.hpatches import (
    TYPES,
    choose,
    count_patches,
    excluded_large,
    find_strips,
    official_patch_count,
    official_test,
    patch_std,
    read_strip,
    type_index,
    write_strip,
)
from eval.hpatches.descriptors import from_blocks, read_csv_set, read_descriptor_csv, resize_patches
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError


def make_sequence(folder: Path, count: int = 3, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for name in TYPES:
        write_strip(folder / f"{name}.png", rng.integers(0, 256, (count, 65, 65), dtype=np.uint8))
    return folder


def test_strips_come_back_patch_by_patch(tmp_path):
    patches = np.random.default_rng(0).integers(0, 256, (4, 65, 65), dtype=np.uint8)
    write_strip(tmp_path / "ref.png", patches)
    with Image.open(tmp_path / "ref.png") as image:
        assert image.size == (65, 260)
        assert image.mode == "L"
    np.testing.assert_array_equal(read_strip(tmp_path / "ref.png"), patches)


def test_order_of_types():
    assert TYPES[:7] == ("ref", "e1", "e2", "e3", "e4", "e5", "h1")
    assert [type_index("h", k) for k in (0, 1, 5)] == [0, 6, 10]
    assert TYPES[type_index("t", 5)] == "t5"


def test_patch_std_is_the_population_one():
    patch = np.zeros((1, 65, 65), np.uint8)
    patch.flat[: 65 * 65 // 2] = 20
    assert patch_std(patch)[0] == pytest.approx(patch.std())


def test_sequences_are_found_and_other_folders_ignored(tmp_path):
    make_sequence(tmp_path / "v_b")
    make_sequence(tmp_path / "i_a")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "i_a" / "ref.overlaps").write_text("1\n")
    assert list(find_strips(tmp_path)) == ["i_a", "v_b"]
    assert list(find_strips(tmp_path / "i_a")) == ["i_a"]
    assert count_patches(tmp_path / "i_a") == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "h3.png").unlink(), "h3.png is not there"),
        (lambda f: write_strip(f / "t2.png", np.zeros((2, 65, 65), np.uint8)), "t2.png holds 2 patches, ref.png 3"),
        (lambda f: Image.new("L", (64, 192)).save(f / "e4.png"), "e4.png is 64 x 192"),
        (lambda f: Image.new("L", (65, 190)).save(f / "e4.png"), "e4.png is 65 x 190"),
        (lambda f: (f / "e5.png").write_bytes(b"no image"), "e5.png does not decode"),
    ],
)
def test_a_damaged_sequence_is_named(tmp_path, damage, message):
    folder = make_sequence(tmp_path / "i_a")
    damage(folder)
    with pytest.raises((DataError, MissingFileError), match=message):
        count_patches(folder)


def test_a_cut_strip_is_named(tmp_path):
    folder = make_sequence(tmp_path / "i_a", 20)
    path = folder / "ref.png"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"ref\.png is cut short"):
        read_strip(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "16"])
def test_strips_of_any_depth_and_colour_are_read(mode: str, tmp_path) -> None:
    folder = make_sequence(tmp_path / "i_a")
    gray = read_strip(folder / "ref.png")
    column = gray.reshape(-1, 65)
    image = Image.fromarray(column.astype(np.uint16) * 257) if mode == "16" else Image.fromarray(column).convert(mode)
    image.save(folder / "ref.png")
    assert count_patches(folder) == len(gray)
    np.testing.assert_array_equal(read_strip(folder / "ref.png"), gray)


def test_a_delimiter_after_the_last_number(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("1,2,\n3,4,\n")
    assert read_descriptor_csv(tmp_path / "a.csv").tolist() == [[1, 2], [3, 4]]
    (tmp_path / "a.csv").write_text("1,2,\n3,4,5,\n")
    with pytest.raises(DataError, match="not a table of numbers"):
        read_descriptor_csv(tmp_path / "a.csv")


def test_splits_hold_the_official_lists():
    assert [len(official_test(s)) for s in ("a", "b", "c", "illum", "view", "full")] == [40, 40, 40, 57, 59, 116]
    assert official_test("full") == official_test("illum") + official_test("view")
    assert official_test("a")[:2] == ["i_ajuntament", "i_resort"]
    assert len(excluded_large()) == 8
    assert official_patch_count("i_zion") == (2000, 2000)
    assert official_patch_count("nobody") is None
    split = choose("a", official_test("full"))
    assert split.is_official
    assert len(split.train) == 76
    assert not set(split.train) & set(split.test)


def test_a_partial_set_keeps_the_official_order():
    split = choose("full", ["zebra", "v_wall", "i_porta", "i_table"])
    assert split.test == ("i_table", "i_porta", "v_wall", "zebra")
    assert split.extra == ("zebra",)
    assert len(split.missing) == 113
    assert not split.is_official
    assert choose("view", ["i_porta", "v_mine"]).test == ("v_mine",)
    with pytest.raises(DataError, match="no sequence of split a"):
        choose("a", ["boat"])
    with pytest.raises(UsageError, match="no split 'ful'; did you mean full"):
        choose("ful", ["boat"])


def write_csv_folder(root: Path, delimiter: str = ",", columns: int = 4) -> np.ndarray:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((16, 3, columns)).astype(np.float32)
    (root / "i_a").mkdir(parents=True)
    for t, name in enumerate(TYPES):
        np.savetxt(root / "i_a" / f"{name}.csv", values[t], fmt="%10.7f", delimiter=delimiter)
    return values


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " ", "|", ":", " , "])
def test_csv_of_any_delimiter(tmp_path, delimiter):
    values = write_csv_folder(tmp_path / "d", delimiter)
    found = read_csv_set(tmp_path / "d")
    assert found.names == ("i_a",)
    for t in range(16):
        np.testing.assert_allclose(found.get("i_a", t), values[t], atol=1e-6)


def test_packed_binary_descriptors(tmp_path):
    (tmp_path / "a.csv").write_text("128;1\n3;255\n")
    bits = read_descriptor_csv(tmp_path / "a.csv", packed=True)
    assert bits[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0] + [0] * 7 + [1]
    assert bits[1].tolist() == [0] * 6 + [1, 1] + [1] * 8
    (tmp_path / "b.csv").write_text("128,300\n")
    with pytest.raises(DataError, match="whole numbers 0 … 255"):
        read_descriptor_csv(tmp_path / "b.csv", packed=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,nan\n", "line 2, column 2 is not a finite number"),
        ("1,2\n3,1e99\n", "line 2, column 2 is not a finite number"),
        ("1\n2\n", "one column"),
        ("1,5;2,5\n", "holds ',' and ';': expected numbers and one delimiter"),
        ("a,b\n1,2\n", "holds ',' and 'a' and 'b'"),
        ("1;2\n3,4\n", "not a table of numbers"),
        ("1,2\n3\n", "not a table of numbers"),
        ("1-2\n", "not a table of numbers"),
        ("\n", "is empty"),
        ("", "is empty"),
    ],
)
def test_bad_csv_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "ref.csv").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_descriptor_csv(tmp_path / "ref.csv")
    assert "ref.csv" in str(error.value)


def test_numbers_of_every_form_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("  -1.5e-3;+.5; 2.;1E2\n1;2;3;-4\n")
    np.testing.assert_allclose(read_descriptor_csv(tmp_path / "a.csv"), [[-0.0015, 0.5, 2, 100], [1, 2, 3, -4]])


def test_blocks_fill_a_set_exactly():
    block = np.ones((8, 3), np.float32)
    found = from_blocks({"i_a": 1}, [block, 2 * block])
    assert found.get("i_a", 8).tolist() == [[2, 2, 2]]
    for blocks in ([block], [block] * 3, [block, block[:, :2]]):
        with pytest.raises(DataError):
            from_blocks({"i_a": 1}, blocks)


def test_csv_strips_must_agree(tmp_path):
    write_csv_folder(tmp_path / "d")
    (tmp_path / "d" / "i_a" / "h2.csv").write_text("1,2,3,4\n")
    with pytest.raises(DataError, match=r"h2\.csv holds 1 descriptors of 4 values, expected 3 of 4"):
        read_csv_set(tmp_path / "d")
    (tmp_path / "d" / "i_a" / "h2.csv").unlink()
    with pytest.raises(MissingFileError, match=r"h2\.csv"):
        read_csv_set(tmp_path / "d")


def test_resize_is_opencv_bilinear_without_antialiasing():
    ramp = np.tile(np.arange(65, dtype=np.uint8), (1, 65, 1))
    small = resize_patches(ramp, 32)
    centres = (np.arange(32) + 0.5) * 65 / 32 - 0.5
    np.testing.assert_allclose(small[0, 0], centres, atol=0.75)  # 8-bit result, fixed-point weights
    assert resize_patches(ramp[:0], 32).shape == (0, 32, 32)
