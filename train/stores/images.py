"""Reading images, and running a function over them in processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from common import images as _images
from kornia_hardnet8.errors import DataError, HardNet8Error, MissingFileError, UsageError, missing_extra

A = TypeVar("A")
B = TypeVar("B")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")


def load_cv2() -> Any:
    """OpenCV, or the error with the line that installs it."""
    return _images.load_cv2(extra="train")


def list_images(folder: str | Path) -> list[Path]:
    """The image files below ``folder``, sorted by path.

    Raises:
        MissingFileError: ``folder`` is not there.
        DataError: it holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"folder {folder} is not there")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not found:
        raise DataError(f"{folder} holds no image ({', '.join(EXTENSIONS)})")
    return found


def read_color(path: str | Path) -> np.ndarray:
    """Read an image as uint8 RGB (H, W, 3), as its pixels lie in the file (no EXIF rotation).

    Raises:
        MissingFileError: the file is not there.
        DataError: it does not decode, or is cut short.
    """
    bgr = _images.read_bgr(Path(path), extra="train")
    return np.ascontiguousarray(bgr[..., ::-1])


def read_gray(path: str | Path) -> np.ndarray:
    """Read an image as uint8 gray (H, W): 0.299 R + 0.587 G + 0.114 B, Pillow's mode "L"."""
    from PIL import Image

    return np.array(Image.fromarray(read_color(path)).convert("L"))


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of an image, read from its header.

    Raises:
        DataError: no image.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise missing_extra("Pillow", "train") from None
    try:
        with Image.open(path) as image:
            return image.size
    except (UnidentifiedImageError, OSError):
        raise DataError(f"image {path} does not decode") from None


class Map(Protocol):
    """``map`` whose results come in the order of the items."""

    def __call__(self, function: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        """Results in order."""


@contextlib.contextmanager
def worker_map(num_workers: int) -> Iterator[Map]:
    """Yield a :class:`Map` that runs in ``num_workers`` processes (0: in this one).

    At most two results a worker wait in memory. The results do not depend on ``num_workers``.

    Raises:
        UsageError: a negative number.
        HardNet8Error: a worker was killed.
    """
    if num_workers < 0:
        raise UsageError(f"--num-workers must not be negative, got {num_workers}")
    if num_workers == 0:
        yield _map_here
        return
    load_cv2()  # a missing package is told here, not by a worker that dies
    context = multiprocessing.get_context("spawn")  # a fork of a process that runs torch threads can hang
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_single_thread) as pool:

        def run(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
            waiting: deque[Future[B]] = deque()
            try:
                for item in items:
                    waiting.append(pool.submit(function, item))
                    if len(waiting) >= 2 * num_workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BrokenProcessPool:
                raise HardNet8Error("a worker process was killed (out of memory?): use fewer --num-workers") from None
            finally:
                for future in waiting:
                    future.cancel()

        yield run


def ordered_map(function: Callable[[A], B], items: Iterable[A], num_workers: int) -> Iterator[B]:
    """Results of ``function`` in the order of ``items``, by a :func:`worker_map` of its own."""
    with worker_map(num_workers) as run:
        yield from run(function, items)


def _map_here(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    yield from map(function, items)


def _single_thread() -> None:
    _leave_with_parent()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    load_cv2().setNumThreads(1)


def _leave_with_parent() -> None:
    """End this process when the one that started it is killed: nobody is left to give it work."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
