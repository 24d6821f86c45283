"""Reading other people's files of weights."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.files import sha256_file
from kornia_hardnet8.torch_files import load_torch, state_dict_of

WEIGHTS_VARIABLE = "KORNIA_HARDNET8_WEIGHTS"


def find_file(what: str, name: str, given: Path | None, usual_name: str, cached_name: str | None = None) -> Path:
    """Find a file of weights; nothing is downloaded.

    It is ``given``, else ``usual_name`` in the folder that KORNIA_HARDNET8_WEIGHTS names, else ``cached_name`` in
    kornia's cache.

    Args:
        what: the token, for messages.
        name: the part of it before ``@``.
        given: the path after ``@``.
        usual_name: file name in the folder of the environment variable.
        cached_name: file name in kornia's cache, where kornia has such weights.

    Raises:
        MissingFileError: with every place that was looked at.
    """
    if given is not None:
        if not given.is_file():
            raise MissingFileError(f"{what}: {given} is not there")
        return given
    folder = os.environ.get(WEIGHTS_VARIABLE)
    places = [] if not folder else [Path(folder).expanduser() / usual_name]
    if cached_name is not None:
        places.append(Path(torch.hub.get_dir()) / "checkpoints" / cached_name)
    for place in places:
        if place.is_file():
            return place
    variable = f"({WEIGHTS_VARIABLE}={folder})" if folder else f"({WEIGHTS_VARIABLE} is not set)"
    if places:
        raise MissingFileError(
            f"{what}: {' and '.join(map(str, places))} {'is' if len(places) == 1 else 'are'} not there {variable}; "
            f"write {name}@PATH, or put {usual_name} into the folder that {WEIGHTS_VARIABLE} names"
        )
    raise MissingFileError(
        f"{what} needs weights: write {name}@PATH, or name the folder that holds {usual_name} in {WEIGHTS_VARIABLE}"
    )


def weights_sha256(path: Path) -> str:
    """Hex SHA-256 of a file of weights, read once while it stays as it is."""
    about = path.stat()
    return _sha256(path, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    return sha256_file(path)


def kornia_module(name: str) -> Any:
    """A class of ``kornia.feature``.

    Raises:
        UsageError: this version of kornia does not have it.
    """
    import kornia
    import kornia.feature

    module = getattr(kornia.feature, name, None)
    if module is None:
        raise UsageError(f"kornia {kornia.__version__} has no {name}: pip install 'kornia>=0.9'")
    return module


def read_weights(path: Path) -> Mapping[str, Any]:
    """Read a torch file without running code in it.

    Raises:
        DataError: truncated, not a torch file, or not a mapping.
    """
    content = load_torch(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path} holds a {type(content).__name__}, expected a state dict")
    return content


def load_strictly(module: nn.Module, state: Mapping[str, Any], path: Path, network: str) -> None:
    """Load a state dict, see :func:`~kornia_hardnet8.torch_files.state_dict_of`; names and shapes must be its own."""
    try:
        module.load_state_dict(dict(state_dict_of(state)), strict=True)
        if any(value.is_meta or not torch.isfinite(value).all() for value in module.state_dict().values()):
            raise RuntimeError("it holds values that are not finite")
    except Exception as error:  # torch raises many types for odd content
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} does not hold the weights of {network}: {reason}") from None
