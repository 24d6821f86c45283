"""COLMAP's writers of databases, in a process of their own.

They write in threads and at the end of transactions, where an error of SQLite, a full disk for one, ends the process.
"""

from __future__ import annotations

import functools
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.colmap import load_pycolmap
from common.jobs import JobError, worker_map
from kornia_hardnet8.errors import DataError, HardNet8Error


def extract_sift(
    database: Path, images: Path, batches: Iterable[Sequence[str]], max_keypoints: int, num_threads: int
) -> Iterator[None]:
    """Detect and describe the images of each batch; those that the database has are left alone.

    Raises:
        DataError: COLMAP failed; the message says why.
    """
    sift = {"max_num_features": max_keypoints, "max_num_orientations": 1}
    function = functools.partial(_extract, database, images, {"num_threads": num_threads, "sift": sift})
    yield from _apart(function, batches, database)


def import_images(database: Path, images: Path, mode: str, names: Sequence[str], options: Mapping[str, Any]) -> None:
    """Write images, and cameras by a mode of ``pycolmap.CameraMode`` and EXIF.

    Raises:
        DataError: COLMAP failed; the message says why.
    """
    list(_apart(functools.partial(_import, database, images, mode, options), [names], database))


@contextmanager
def sqlite_errors(folder: Path) -> Iterator[None]:
    """What pycolmap and SQLite raise while they write a database in a folder becomes one line."""
    try:
        yield
    except HardNet8Error:
        raise
    except (RuntimeError, ValueError, sqlite3.Error) as error:
        raise _failure(folder, f"SQLite error: {error}" if isinstance(error, sqlite3.Error) else str(error)) from None


def _extract(database: Path, images: Path, options: Mapping[str, Any], names: Sequence[str]) -> None:
    pycolmap = load_pycolmap()
    given = pycolmap.FeatureExtractionOptions()
    given.mergedict(dict(options))
    pycolmap.extract_features(database, images, list(names), extraction_options=given, device=pycolmap.Device.cpu)


def _import(database: Path, images: Path, mode: str, options: Mapping[str, Any], names: Sequence[str]) -> None:
    pycolmap = load_pycolmap()
    given = pycolmap.ImageReaderOptions()
    given.mergedict(dict(options))
    pycolmap.import_images(database, images, getattr(pycolmap.CameraMode, mode), list(names), given)


def _apart(function: Callable[[Any], None], items: Iterable[Any], database: Path) -> Iterator[None]:
    """Results of a function in one worker; what the worker writes to stderr is read when it fails."""
    with tempfile.TemporaryDirectory() as folder, worker_map(1) as run, sqlite_errors(database.parent):
        log = Path(folder) / "log"
        try:
            yield from run(functools.partial(_with_log, function, log), items)
        except JobError:
            raise _failure(database.parent, log.read_text(errors="replace") if log.is_file() else "") from None


def _with_log(function: Callable[[Any], None], log: Path, item: Any) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 2)
    os.close(handle)
    function(item)


def _failure(folder: Path, text: str) -> DataError:
    full = re.search(r"SQLite error: .*|No registered database factory.*", text)
    if full is not None:
        return DataError(f"COLMAP cannot write its database in {folder} (is the disk full?): {full[0].strip()}")
    return DataError(f"COLMAP failed in {folder}: {' '.join(text.split())[-200:] or 'its process was killed'}")
