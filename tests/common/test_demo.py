from __future__ import annotations

from pathlib import Path

import pytest

import common.cache
from common.cache import code_hash, demo_folder
from kornia_hardnet8.errors import DataError
from kornia_hardnet8.files import atomic_dir


def test_a_demo_is_made_once_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def build(folder: Path) -> None:
        with atomic_dir(folder) as temporary:
            (temporary / "file").write_text("x")
        made.append(folder)
        if len(made) == 2:  # what a slower process meets
            raise DataError("exists already")

    first = demo_folder("a/inner", "common.cache", (), build)
    assert first == demo_folder("a/inner", "common.cache", (), build)
    assert first.name == "inner"
    assert first.parent.name == f"a-{code_hash('common.cache', ())}"
    second = demo_folder("b", "common.cache", (), build)
    assert made == [first, second]


def test_a_build_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def build(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        demo_folder("a", "common.cache", (), build)


def test_the_name_follows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.cache, "_ROOT", tmp_path)
    for name in ("drawing", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "drawing" / "make.py").write_text("def f():\n    from drawing import deep\n    import other.far\n")
    (tmp_path / "drawing" / "deep.py").write_text("import drawing.make\n")
    (tmp_path / "other" / "far.py").write_text("")
    both, one = (("drawing", "other"), ("drawing",))
    before = code_hash("drawing.make", both), code_hash("drawing.make", one)
    (tmp_path / "other" / "far.py").write_text("x = 1\n")
    assert code_hash("drawing.make", both) != before[0]
    assert code_hash("drawing.make", one) == before[1]
    (tmp_path / "drawing" / "deep.py").write_text("x = 1\n")
    assert code_hash("drawing.make", one) != before[1]
