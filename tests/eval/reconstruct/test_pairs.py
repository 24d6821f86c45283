from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest

from eval.core.pairs import IMAGES_IN_MEMORY
from eval.reconstruct.pairs import exhaustive_pairs, read_pairs
from kornia_hardnet8.errors import DataError, MissingFileError

NAMES = ["a.jpg", "b c.jpg", "b.jpg", "c.jpg", "ä/d e.jpg"]


def test_all_pairs() -> None:
    assert exhaustive_pairs(["a", "b", "c"]) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert exhaustive_pairs(["a"]) == []


def test_many_pairs_follow_each_other_by_images() -> None:
    names = [f"{index:03d}" for index in range(150)]
    pairs = exhaustive_pairs(names)
    assert sorted(pairs) == list(itertools.combinations(names, 2))
    load = functools.lru_cache(maxsize=IMAGES_IN_MEMORY)(lambda name: name)
    for pair in pairs:
        for name in pair:
            load(name)
    assert load.cache_info().misses <= 5 * len(names)


def test_a_list(tmp_path: Path) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text(
        "# comment\n\na.jpg b c.jpg\nb c.jpg a.jpg\nä/d e.jpg  a.jpg 0.93 7\r\nb.jpg\tc.jpg\t12\nc.jpg bad.jpg\n",
        encoding="utf-8",
    )
    assert read_pairs(file, NAMES, ["bad.jpg"]) == [
        ("a.jpg", "b c.jpg"),
        ("a.jpg", "ä/d e.jpg"),
        ("b.jpg", "c.jpg"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg x.jpg\n", "line 1: there is no image 'x.jpg'"),
        ("a.jpg b.jpg\nb.jpeg c.jpg\n", "line 2: there is no image 'b.jpeg' in the folder; did you mean b.jpg"),
        ("a.jpg\n", "does not begin with two names"),
        ("a.jpg x.jpg 0.5\n", "does not begin with two names"),
        ("a.jpg a.jpg\n", "paired with itself"),
        ("a.jpg x.jpg" + " 9" * 1_000_000, "'a.jpg x.jpg 9.* does not begin with two names"),
        ("# nothing\n", "holds no pair"),
        ("a.jpg bad.jpg\n", "holds no pair"),
    ],
)
def test_wrong_lists(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        read_pairs(file, NAMES, ["bad.jpg"])
    assert len(str(error.value)) < 1000


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="is not there"):
        read_pairs(tmp_path / "pairs.txt", NAMES)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_pairs(tmp_path / "binary", NAMES)
