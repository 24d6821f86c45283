"""Downloads from a local server that does everything servers do wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kornia_hardnet8.errors import DataError
from train.cli import main
from train.download import DownloadError, download
from train.fetch import SOURCES, Source

CONTENT = bytes(range(256)) * 4000  # 1 MB
MD5 = hashlib.md5(CONTENT).hexdigest()


def _zip_of(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr(f"{name}/dense/images/1.jpg", name)
    return data.getvalue()


class _Server(http.server.BaseHTTPRequestHandler):
    """``/good`` serves; ``/drops`` breaks off twice; ``/norange`` too, without ranges; and so on."""

    requests: list[tuple[str, str | None]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        kind, asked = self.path.split("/")[1], self.headers.get("Range")
        first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        attempt = sum(path == self.path for path, _ in self.requests)
        self.requests.append((self.path, asked))
        body = CONTENT
        if kind == "missing":
            self.send_error(404)
            return
        if kind == "leads":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/file")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if kind == "busy" and attempt < 2:
            self.send_error(503)
            return
        if kind == "zip":
            body = _zip_of(self.path.rsplit("/", 1)[-1])
        if kind == "wrong":
            body = CONTENT[::-1]
        if kind == "short":  # announces more than it has
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + 1000))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True
            return
        ranged = asked and kind != "norange"
        if ranged and first >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest = body[first:] if ranged else body
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(rest)))
        if ranged:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        breaks = (kind == "drops" and attempt < 2) or (kind == "norange" and attempt < 1)
        self.wfile.write(rest[: len(rest) // 3 if breaks else None])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    _Server.requests.clear()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize("kind", ["good", "drops", "norange", "busy"])
def test_the_file_arrives_whole(server: str, tmp_path: Path, kind: str) -> None:
    target = download([f"{server}/{kind}/file"], tmp_path / "new" / "file", [MD5], wait_s=0)
    assert target.read_bytes() == CONTENT
    assert [f.name for f in target.parent.iterdir()] == ["file"]
    asked = [range_ for _, range_ in _Server.requests]
    if kind == "drops":
        assert asked[0] is None
        assert [int(a[6:-1]) for a in asked[1:]] == sorted({int(a[6:-1]) for a in asked[1:]})
        assert len(asked) == 3
    before = len(asked)
    download([f"{server}/{kind}/file"], target, [MD5])  # it is there: nothing is asked
    assert len(_Server.requests) == before


def test_a_broken_download_goes_on_in_a_later_call(server: str, tmp_path: Path) -> None:
    url = f"{server}/good/file"
    part = tmp_path / f".file.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
    part.write_bytes(CONTENT[:700_000])
    assert download([url], tmp_path / "file", [MD5]).read_bytes() == CONTENT
    assert _Server.requests == [("/good/file", "bytes=700000-")]
    part.write_bytes(CONTENT)  # all there, only the renaming was missed
    (tmp_path / "file").unlink()
    assert download([url], tmp_path / "file", [MD5]).read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["wrong", "missing", "short"])
def test_the_next_place_is_asked(server: str, tmp_path: Path, kind: str) -> None:
    urls = [f"{server}/{kind}/file", f"{server}/good/file"]
    assert download(urls, tmp_path / "file", [MD5], wait_s=0).read_bytes() == CONTENT
    assert [f.name for f in tmp_path.iterdir()] == ["file"] or kind == "short"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("wrong", "checksum is wrong"), ("missing", "HTTP status 404"), ("short", "bytes"), ("nowhere", "refused")],
)
def test_failure_says_why_and_leaves_nothing_under_the_name(
    server: str, tmp_path: Path, kind: str, reason: str
) -> None:
    url = "http://127.0.0.1:9/file" if kind == "nowhere" else f"{server}/{kind}/file"
    with pytest.raises(DownloadError) as error:
        download([url], tmp_path / "file", [MD5], wait_s=0)
    assert reason in str(error.value)
    assert url in str(error.value)
    assert not (tmp_path / "file").exists()


def test_a_small_disk_is_noticed_before(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="has 0 MB free"):
        download([f"{server}/good/file"], tmp_path / "file", [MD5])


def _zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, name)
    return path


def test_the_command_unpacks_flat_or_from_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, names in enumerate(
        (["info.txt", "patches0000.bmp"], ["notredame/info.txt", "notredame/patches0000.bmp"])
    ):
        archive = _zip(tmp_path / f"{number}.zip", names)
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        source = Source(("http://x/n.zip",), (md5,), "6Brown/notredame", "train x {place} {root}/y")
        monkeypatch.setitem(SOURCES, "notredame", source)
        root = tmp_path / f"root{number}"
        assert main(["fetch", "notredame", "--data-root", str(root), "--from-file", str(archive)]) == 0
        found = sorted(f.name for f in (root / "6Brown" / "notredame").iterdir())
        assert found == ["info.txt", "patches0000.bmp"]
        assert archive.exists()  # a file downloaded by hand stays
        place = root / "6Brown" / "notredame"
        assert f"{place}: now python -m train x {place} {root}/y" in capsys.readouterr().out
    assert main(["fetch", "notredame", "--data-root", str(root)]) == 0
    assert "is there already" in capsys.readouterr().out


def test_the_command_answers_wrong_names_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "libertee", "--data-root", str(tmp_path)]) == 2
    assert "did you mean liberty" in capsys.readouterr().err
    other = _zip(tmp_path / "other.zip", ["a"])
    assert main(["fetch", "liberty", "--data-root", str(tmp_path), "--from-file", str(other)]) == 1
    assert "checksum is none of" in capsys.readouterr().err
    assert main(["fetch", "liberty", "--data-root", str(tmp_path), "--from-file", str(tmp_path / "no")]) == 1
    assert not (tmp_path / "6Brown").exists()
    assert main(["fetch"]) == 0
    assert "liberty_harris" in capsys.readouterr().out


def test_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    from train.fetch import unpack

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", CONTENT)
    raw = bytearray(data.getvalue())
    raw[100:200] = b"\0" * 100
    (tmp_path / "x.zip").write_bytes(bytes(raw))
    with pytest.raises(DataError, match="damaged"):
        unpack(tmp_path / "x.zip", tmp_path / "out", keep=True)
    assert not (tmp_path / "out").exists()


def test_anything_else_by_url(server: str, tmp_path: Path) -> None:
    arguments = ["fetch", "extra", "--url", f"{server}/good/file.pt", "--checksum", MD5, "--data-root", str(tmp_path)]
    assert main(arguments) == 0
    assert (tmp_path / "extra" / "file.pt").read_bytes() == CONTENT


def test_a_single_file_is_fetched_once(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "hpatches-view-split"
    monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], urls=(f"{server}/good/split.pt",)))
    line = ["fetch", name, "--data-root", str(tmp_path), "-q"]
    assert main(line) == 0
    asked = len(_Server.requests)
    assert asked
    capsys.readouterr()
    assert main(line) == 0
    assert len(_Server.requests) == asked
    assert "is there already" in capsys.readouterr().out
    # of another content than the one that is asked for: again
    extra = ["fetch", "HPatches", "--url", f"{server}/good/split.pt", "--data-root", str(tmp_path), "-q"]
    (tmp_path / "HPatches" / "split.pt").write_bytes(b"old")
    assert main([*extra, "--checksum", MD5]) == 0
    assert (tmp_path / "HPatches" / "split.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", ["abc", "g" * 32, "0" * 63])
def test_a_checksum_of_another_form_is_refused_before_the_download(
    server: str, tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = len(_Server.requests)
    line = ["fetch", "extra", "--url", f"{server}/good/file.pt", "--checksum", MD5, wrong, "--data-root", str(tmp_path)]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert f"{wrong!r} is no checksum" in error
    assert len(error.strip().splitlines()) == 1
    assert len(_Server.requests) == asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "{}/good/x.zip"], "--url needs a NAME"),
        (["--url-list", "scenes.txt"], "--url-list needs a NAME"),
        (["--from-file", "x.zip"], "--from-file needs a NAME"),
        (["--checksum", MD5], "--checksum needs a NAME"),
        (["liberty", "--checksum", MD5], "--checksum has no effect with liberty"),
        (["a", "--url-list", "scenes.txt", "--checksum", MD5], "--checksum has no effect with --url-list"),
        (["../esc", "--url", "{}/good/x.zip"], "../esc is no folder below --data-root"),
        (["/esc", "--url", "{}/good/x.zip"], "/esc is no folder below --data-root"),
        ([".", "--url", "{}/good/x.zip"], ". is no folder below --data-root"),
        (["a/../../esc", "--url-list", "scenes.txt"], "is no folder below --data-root"),
        (["x", "--url", "ftp://127.0.0.1/x.zip"], "begins with http:// or https://"),
        (["x", "--url", "x.zip"], "begins with http:// or https://"),
        (["x", "--url", "http://[x"], "begins with http:// or https://"),
        (["x", "--url", "{}"], "names no file"),
        (["x", "--url", "{}/?file=a.zip"], "names no file"),
        (["x", "--url", "{}/a/.."], "names no file"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together_are_refused_before_the_download(
    server: str, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "Datasets"
    assert main(["fetch", *(part.format(server) for part in arguments), "--data-root", str(root)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not _Server.requests
    assert not list(tmp_path.iterdir())


def test_the_others_are_fetched_when_one_fails(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kind in (("gone", "missing"), ("there", "zip"), ("also-gone", "missing")):
        monkeypatch.setitem(SOURCES, name, Source((f"{server}/{kind}/{name}.zip",), (), f"put/{name}"))
    line = ["fetch", "gone", "there", "also-gone", "--data-root", str(tmp_path), "-q"]
    assert main(line) == 1
    assert (tmp_path / "put" / "there" / "dense" / "images" / "1.jpg").is_file()
    error = capsys.readouterr().err
    assert "gone: gone.zip could not be fetched" in error
    assert error.strip().splitlines()[-1] == "error: 2 of 3 were not fetched: gone, also-gone"
    asked = len(_Server.requests)
    assert main(["fetch", "gone", "nothing", *line[4:]]) == 2
    assert len(_Server.requests) == asked
    assert "nothing to fetch is called 'nothing'" in capsys.readouterr().err
    listed = tmp_path / "scenes.txt"
    listed.write_text(f"{server}/missing/a.zip\n{server}/zip/b.zip\n")
    assert main(["fetch", "scenes", "--url-list", str(listed), "--data-root", str(tmp_path), "-q"]) == 1
    assert "1 of 2 were not fetched: a" in capsys.readouterr().err
    assert (tmp_path / "scenes" / "b").is_dir()


def test_a_place_that_leads_elsewhere_than_http_is_final(server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="adapter"):
        download([f"{server}/leads/file"], tmp_path / "file", wait_s=30)
    assert len(_Server.requests) == 1


def test_scenes_by_a_list_of_urls(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sums = [hashlib.sha256(_zip_of(f"{name}.zip")).hexdigest() for name in ("a", "b")]
    listed = tmp_path / "scenes.txt"
    listed.write_text(f"# scenes\n{server}/zip/a.zip {sums[0]}\n\n{server}/zip/b.zip\n")
    root = tmp_path / "Datasets"
    line = ["fetch", "phototourism", "--url-list", str(listed), "--data-root", str(root), "-q"]
    assert main(line) == 0
    for name in ("a", "b"):
        assert (root / "phototourism" / name / "dense" / "images" / "1.jpg").read_text() == f"{name}.zip"
    asked = len(_Server.requests)
    assert main(line) == 0
    assert len(_Server.requests) == asked
    capsys.readouterr()
    listed.write_text(f"{server}/zip/c.zip {sums[0]}\n")
    assert main(line) == 1
    assert "checksum is wrong" in capsys.readouterr().err
    for content, message in (
        ("nothing here\n", "line 1 is not of the form"), ("# none\n", "lists no URL"),
        (f"{server}/x/a.zip\n{server}/y/a.zip\n", "line 2: a second file is called a"),
        (f"{server}/x/a.zip abc\n", "line 1: 'abc' is no checksum"), (f"{server}/x/.zip\n", "names no folder"),
        (f"{server}/x/a.zip\nftp://x/b.zip\n", "line 2: 'ftp://x/b.zip' cannot be fetched"),
    ):  # fmt: skip
        listed.write_text(content)
        assert main(line) == 1
        assert message in capsys.readouterr().err
    listed.write_text(f"{server}/zip/a.zip\n", encoding="utf-16")
    assert main(line) == 1
    assert "scenes.txt is not UTF-8 text" in capsys.readouterr().err
    listed.write_text(f"{server}/zip/a.zip\n", encoding="utf-8-sig")
    assert main(line) == 0


def test_the_archive_of_2020_goes_among_the_files_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it has of another age or another hand is left as it is."""
    root = tmp_path / "Datasets"
    archive = tmp_path / "Datasets.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("6Brown/liberty.pt", "6Brown/notredame.pt", "AMOS-views/AMOS-masks/1.png"):
            file.writestr(f"Datasets/{name}", "theirs")
    (root / "6Brown").mkdir(parents=True)
    (root / "6Brown" / "notredame.pt").write_text("ours")
    line = ["fetch", "2020", "--data-root", str(root), "--from-file", str(archive)]
    assert main(line) == 0
    assert (root / "6Brown" / "liberty.pt").read_text() == "theirs"
    assert (root / "AMOS-views" / "AMOS-masks" / "1.png").read_text() == "theirs"
    assert (root / "6Brown" / "notredame.pt").read_text() == "ours"
    assert sorted(path.name for path in root.iterdir()) == ["6Brown", "AMOS-views"]
    assert main(["fetch", "2020", "--data-root", str(root)]) == 0
    assert "is there already" in capsys.readouterr().out
