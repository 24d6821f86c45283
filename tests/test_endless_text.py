"""Text files that are larger than any honest one are refused before they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.brown import _columns
from eval.hpatches.descriptors import read_descriptor_csv
from eval.hpatches.tasks import _read_columns
from kornia_hardnet8.errors import DataError
from train.loop import _cut_metrics
from train.plots import read_metrics


@pytest.mark.parametrize(
    "read",
    [
        lambda path: _columns(path, [0]),
        read_descriptor_csv,
        lambda path: _read_columns(path, "s1,t1,idx1"),
        lambda path: _cut_metrics(path, 1),
        lambda path: read_metrics(path.parent),
    ],
    ids=["brown", "csv", "tasks", "resume", "plot"],
)
def test_endless_text_is_not_read(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.touch()
    os.truncate(path, (1 << 30) + 1)
    with pytest.raises(DataError, match=f"{path} is larger than any text file"):
        read(path)
