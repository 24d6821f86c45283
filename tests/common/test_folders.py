from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.folders import claimed
from kornia_hardnet8.errors import DataError


def test_one_process_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claimed(folder):
        code = (
            f"from common.folders import claimed\nfrom pathlib import Path\nwith claimed(Path({str(folder)!r})): pass"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"{folder} is being written by another process" in other.stderr
        with pytest.raises(DataError, match="another process"), claimed(folder):
            pass
    with claimed(folder):  # free again
        (folder / "kept").touch()


def test_a_folder_made_in_vain_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), claimed(tmp_path / "new"):
        raise ValueError("no")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with claimed(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    kept = [".hidden", ".mail.tmp", "kept.tmp", "last.ckpt"]
    for name in (".last.ckpt.x1_34567.tmp", ".database.db.x2345678.tmp-journal", *kept):
        (tmp_path / name).touch()
    (tmp_path / ".sparse.x3345678.tmp").mkdir()
    (tmp_path / ".sparse.x3345678.tmp" / "0").touch()
    with claimed(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_what_a_failure_leaves_is_swept_but_not_what_another_process_writes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), claimed(tmp_path):
        (tmp_path / ".database.db.x2345678.tmp-wal").touch()
        with pytest.raises(DataError, match="another process"), claimed(tmp_path):
            pass
        assert len(list(tmp_path.iterdir())) == 1
        raise ValueError("no")
    assert not list(tmp_path.iterdir())
