"""``python -m train fetch NAME…``: download data sets."""

from __future__ import annotations

import argparse
import logging
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from kornia_hardnet8.errors import DataError, HardNet8Error, MissingFileError, UsageError, closest
from kornia_hardnet8.files import atomic_dir, read_text
from train.download import DownloadError, check_checksums, check_url, download, file_name, is_accepted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A file that can be fetched.

    Attributes:
        urls: places, best first; they may hold different archives of the same data.
        checksums: accepted MD5 sums; empty where none is published.
        folder: where it is unpacked (a file that is no archive: put) below the data root.
        then: the command that uses it; ``{place}`` is the folder, ``{root}`` the data root.
        among_others: its files go among those that are below the data root already; the first one that shows that
            it has been fetched.
    """

    urls: tuple[str, ...]
    checksums: tuple[str, ...]
    folder: str
    then: str = ""
    among_others: str = ""


_REVISITED = "https://cmp.felk.cvut.cz/~mishkdmy/datasets/BrownPhotoTour"
_BROWN = {
    "liberty": ("fdd9152f138ea5ef2091746689176414", "abb7b7e7c8f58b953f9d10dce2cb5e9c"),
    "notredame": ("509eda8535847b8c0a90bbb210c83484", "3fd38e77cd32a43051525532c83460ef"),
    "yosemite": ("533b2e8eb7ede31be40abc317b2fd4f0", "97f1ecc08928cdf2dba220939778779e"),
    "liberty_harris": ("c731fcfb3abb4091110d0ae8c7ba182c", "01c32c4d98493a95f23159923ff0ca39"),
    "notredame_harris": ("69f8c90f78e171349abdf0307afefe4d", "f139ca4e4101d558c31c3233233c2a06"),
    "yosemite_harris": ("a73253d1c6fbd3ba2613c45065c00d46", "a9f8a48c96dbe9e5703f21c1de764173"),
}


def _brown(name: str) -> Source:
    original = "http://matthewalunbrown.com/patchdata" if "harris" in name else "http://icvl.ee.ic.ac.uk/vbalnt"
    second = f"{_REVISITED}/{'notredame/' if name == 'notredame' else ''}{name}.zip"
    then = f"train build brown {{place}} --out {{root}}/6Brown/{name}"
    return Source((f"{original}/{name}.zip", second), _BROWN[name], f"6Brown/published/{name}", then)


_HPATCHES = "https://huggingface.co/datasets/vbalnt/hpatches/resolve/main"
_HPATCHES_OLD = "http://icvl.ee.ic.ac.uk/vbalnt/hpatches"
SOURCES: dict[str, Source] = {
    **{name: _brown(name) for name in _BROWN},
    "hpatches": Source(
        (f"{_HPATCHES}/hpatches-release.zip", f"{_HPATCHES_OLD}/hpatches-release.tar.gz"),
        (), "HPatches/hpatches-release",
        "train build hpatches {place} --out {root}/HPatches/hpatches_illum-view_easy --levels e",
    ),
    "hpatches-sequences": Source(
        (f"{_HPATCHES}/hpatches-sequences-release.zip", f"{_HPATCHES_OLD}/hpatches-sequences-release.tar.gz"),
        (), "HPatches/hpatches-sequences-release", "eval sequences --data {place}",
    ),
    "amos-v3": Source(
        ("http://cmp.felk.cvut.cz/~qqpultar/AMOS_views_v3.zip",), (), "AMOS-views/AMOS-views-v3",
        "train build amos {place} --out {root}/v3",
    ),
    "hpatches-view-split": Source(
        ("http://cmp.felk.cvut.cz/~qqpultar/hpatches_split_view_train.pt",), (), "HPatches", ""
    ),
    # the data of the published commands, Liberty with cameras among them
    "2020": Source(
        ("http://cmp.felk.cvut.cz/~qqpultar/Download/Datasets.zip",), (), "", among_others="6Brown/liberty.pt"
    ),
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"what to fetch: {', '.join(SOURCES)}; none: list them"
    )
    parser.add_argument("--data-root", type=Path, default=Path("Datasets"), help="folder in which data sets lie")
    parser.add_argument(
        "--url", nargs="+", default=[], metavar="URL", help="places of anything else, to go to --data-root/NAME"
    )
    parser.add_argument(
        "--url-list",
        type=Path,
        metavar="FILE",
        help="a file with a URL and perhaps its MD5 or SHA-256 in each line, e.g. of photo tourism scenes: each goes "
        "to --data-root/NAME/<its name>",
    )
    parser.add_argument("--checksum", nargs="+", default=[], metavar="SUM", help="with --url: accepted MD5 or SHA-256")
    parser.add_argument("--from-file", type=Path, metavar="FILE", help="take this file, downloaded by hand, instead")


def run(args: argparse.Namespace) -> None:
    """Fetch, check, unpack, and say where it is."""
    _check_flags(args)
    if not args.names:
        for name, known in SOURCES.items():
            print(f"{name:20} {args.data_root / known.folder}  {known.urls[0]}")
        return
    if args.url_list:
        wanted = read_url_list(args.url_list, args.names[0])
    else:
        wanted = [(name, _source(name, args)) for name in args.names]
    failed = []
    for name, source in wanted:
        try:
            print(_fetch(source, name, args))
        except (HardNet8Error, OSError) as error:
            if len(wanted) == 1:
                raise
            log.error("%s: %s", name, " ".join(str(error).split()))
            failed.append(name)
    if failed:
        raise DownloadError(f"{len(failed)} of {len(wanted)} were not fetched: {', '.join(failed)}")


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is fetched."""
    given = {"--url": args.url, "--url-list": args.url_list, "--from-file": args.from_file, "--checksum": args.checksum}
    if not args.names and (idle := [flag for flag, value in given.items() if value]):
        raise UsageError(f"{idle[0]} needs a NAME: what it is, or the folder below --data-root that it goes to")
    if (args.url or args.from_file or args.url_list) and len(args.names) != 1:
        raise UsageError("--url, --url-list and --from-file are for one NAME at a time")
    if args.url_list and (args.url or args.from_file):
        raise UsageError("--url-list names all places: leave out --url and --from-file")
    _check_places(args)


def _check_places(args: argparse.Namespace) -> None:
    if args.checksum and not args.url:
        beside = "--url-list, whose lines hold them" if args.url_list else args.names[0]
        raise UsageError(f"--checksum has no effect with {beside}: it is for --url")
    for folder in map(Path, args.names if args.url or args.url_list else ()):
        if folder.is_absolute() or ".." in folder.parts or not folder.name:
            raise UsageError(f"{folder} is no folder below --data-root {args.data_root}")
    for url in args.url:
        check_url(url)
    check_checksums(args.checksum)


def _fetch(source: Source, name: str, args: argparse.Namespace) -> str:
    """Bring one source to its place; returns what to print."""
    place = args.data_root / source.folder
    if _is_there(source, place):
        return f"{place}: is there already"
    if args.from_file:
        archive = args.from_file
        if not archive.is_file():
            raise MissingFileError(f"--from-file {archive} is not there")
        if not is_accepted(archive, source.checksums):
            raise DataError(f"{archive} is not {name}: its checksum is none of {', '.join(source.checksums)}")
    else:
        archive = download(source.urls, args.data_root / file_name(source.urls[0]), source.checksums)
    put = unpack_among if source.among_others else unpack
    where = put(archive, place, keep=args.from_file is not None)
    then = source.then.format(place=where, root=args.data_root)
    return f"{where}{f': now python -m {then}' if then else ''}"


def _source(name: str, args: argparse.Namespace) -> Source:
    if args.url:
        return Source(tuple(args.url), tuple(args.checksum), name)
    if name not in SOURCES:
        raise UsageError(f"nothing to fetch is called {name!r}{closest(name, SOURCES)}; anything else: --url")
    return SOURCES[name]


def _is_there(source: Source, place: Path) -> bool:
    if source.among_others:
        return (place / source.among_others).is_file()
    name = file_name(source.urls[0])
    if name.endswith((".zip", ".gz", ".tgz", ".tar")):
        return place.is_dir() and any(place.iterdir())
    return (place / name).is_file() and is_accepted(place / name, source.checksums)


def read_url_list(path: Path, name: str) -> list[tuple[str, Source]]:
    """The sources that a file lists: ``URL [CHECKSUM]`` a line, ``#`` for comments; each of a folder of its own.

    Raises:
        MissingFileError: no file.
        DataError: no text, a line of another form, two of one name, or no line.
    """
    sources: dict[str, Source] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) > 2 or "://" not in words[0]:
            raise DataError(f"{path}, line {number} is not of the form URL [CHECKSUM]")
        try:
            check_url(words[0])
            check_checksums(words[1:])
        except UsageError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        stem = file_name(words[0]).split(".")[0]
        if not stem:
            raise DataError(f"{path}, line {number}: a file called {file_name(words[0])} names no folder")
        if stem in sources:
            raise DataError(f"{path}, line {number}: a second file is called {stem}")
        sources[stem] = Source((words[0],), tuple(words[1:]), f"{name}/{stem}")
    if not sources:
        raise DataError(f"{path} lists no URL")
    return list(sources.items())


def unpack_among(archive: Path, root: Path, keep: bool) -> Path:
    """Unpack an archive into ``root``, among the files there; one that is there already stays. Returns ``root``.

    Raises:
        DataError: see :func:`unpack`.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking.", dir=root) as temporary:
        content = unpack(archive, Path(temporary) / "content", keep=True)
        for file in sorted(path for path in content.rglob("*") if path.is_file()):
            target = root / file.relative_to(content)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                file.rename(target)
    if not keep:
        archive.unlink()
    return root


def unpack(archive: Path, folder: Path, keep: bool) -> Path:
    """Unpack a zip or tar file to ``folder``, whole or not at all; any other file is moved (``keep``: copied) into it.

    A single folder inside the archive is left out of the path. Returns what is there then.

    Raises:
        DataError: a damaged archive, or one with paths outside of itself.
    """
    import shutil

    if not (zipfile.is_zipfile(archive) and archive.suffix != ".pt") and not tarfile.is_tarfile(archive):
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / archive.name
        (shutil.copyfile if keep else shutil.move)(archive, target)
        return target
    try:
        with atomic_dir(folder) as temporary:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as file:
                    file.extractall(temporary)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(temporary, filter="data")
            inside = list(temporary.iterdir())
            if len(inside) == 1 and inside[0].is_dir():
                single = inside[0].rename(temporary / ".single")
                for item in list(single.iterdir()):
                    item.rename(temporary / item.name)
                single.rmdir()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is damaged: {error}") from None
    if not keep:
        archive.unlink()
    return folder
