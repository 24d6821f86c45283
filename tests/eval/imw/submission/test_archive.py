from __future__ import annotations

import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.imw.submission.archive import MAX_ENTRIES, open_submission
from kornia_hardnet8.errors import DataError, MissingFileError

MakeZip = Callable[..., Path]


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target.encode()


def test_a_zip_is_unpacked_and_removed(make_zip: MakeZip) -> None:
    path = make_zip(("config.json", b"[]"), ("phototourism/one/keypoints.h5", b"abc"), ("__MACOSX/x", b"junk"))
    with open_submission(path) as folder:
        files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        assert files == ["config.json", "phototourism/one/keypoints.h5"]
        assert (folder / files[1]).read_bytes() == b"abc"
    assert not folder.exists()


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with open_submission(tmp_path) as folder:
        assert folder == tmp_path
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/etc/evil",
        "..\\evil",
        "a\\..\\..\\evil",
        "C:/evil",
        "C:evil",
        "phototourism/../../evil",
    ],
)
def test_paths_that_leave_the_folder_are_refused(name: str, make_zip: MakeZip, tmp_path: Path) -> None:
    path = make_zip(("config.json", b"[]"), (name, b"evil"))
    with pytest.raises(DataError, match="no path inside"), open_submission(path):
        pass
    assert [p for p in tmp_path.parent.rglob("evil*") if p.is_file()] == []


def test_links_and_special_files_are_refused(make_zip: MakeZip) -> None:
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
        info = zipfile.ZipInfo("phototourism")
        info.external_attr = (kind | 0o777) << 16
        with pytest.raises(DataError, match="link or a special file"), open_submission(make_zip((info, b"/etc"))):
            pass


@pytest.mark.parametrize("names", [("a.h5", "a.h5"), ("a.h5", "A.h5")])
def test_one_name_twice_is_refused(names: tuple[str, str], make_zip: MakeZip) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = make_zip(*((name, b"x") for name in names))
    with pytest.raises(DataError, match="stands twice"), open_submission(path):
        pass


def test_a_bomb_is_refused_before_anything_is_unpacked(make_zip: MakeZip) -> None:
    path = make_zip(("phototourism/one/keypoints.h5", bytes(80 << 20)), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match="refused as a bomb"), open_submission(path):
        pass


def test_the_total_size_is_limited(make_zip: MakeZip) -> None:
    path = make_zip(("a.h5", bytes(600)), ("b.h5", bytes(600)))
    with pytest.raises(DataError, match="at most"), open_submission(path, max_total_bytes=1000):
        pass
    with open_submission(path, max_total_bytes=1200) as folder:
        assert (folder / "b.h5").stat().st_size == 600


def test_a_declared_size_that_lies_is_found(make_zip: MakeZip) -> None:
    """The directory says 10 bytes, the data hold 100 000."""
    path = make_zip(("a.h5", b"z" * 100_000), compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    for position in (22, directory + 24):  # uncompressed size in the local header and in the directory
        content[position : position + 4] = struct.pack("<I", 10)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|declares"), open_submission(path):
        pass


def test_very_many_entries_are_refused(make_zip: MakeZip) -> None:
    with (
        pytest.raises(DataError, match="entries"),
        open_submission(make_zip(*((f"{k}", b"") for k in range(MAX_ENTRIES + 1)))),
    ):
        pass


def test_encrypted_zips_are_refused(make_zip: MakeZip) -> None:
    path = make_zip(("config.json", b"[]"))
    content = bytearray(path.read_bytes())
    for position in (6, content.rindex(b"PK\x01\x02") + 8):
        content[position] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"), open_submission(path):
        pass


@pytest.mark.parametrize("damage", ["no zip", "cut", "flipped"])
def test_damage_is_one_line(damage: str, make_zip: MakeZip, tmp_path: Path) -> None:
    path = make_zip(("config.json", b"[1, 2, 3]" * 500), compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    if damage == "no zip":
        content = bytearray(b"hello")
    elif damage == "cut":
        del content[len(content) // 2 :]
    else:
        for position in range(45, 55):
            content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"made\.zip is damaged or no zip file"), open_submission(path):
        pass
    with pytest.raises(MissingFileError), open_submission(tmp_path / "nowhere.zip"):
        pass


def test_a_link_cannot_redirect_later_files(make_zip: MakeZip, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    path = make_zip(link("phototourism", str(target)), ("phototourism/evil.h5", b"x"))
    with pytest.raises(DataError, match="link"), open_submission(path):
        pass
    assert list(target.iterdir()) == []
