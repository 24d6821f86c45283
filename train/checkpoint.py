"""Training checkpoints: everything that a run needs to go on exactly, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kornia_hardnet8.checkpoints import CHECKPOINT_FORMAT
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.files import atomic_path


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; ``arch`` and ``features`` make it a weight file too."""
    with atomic_path(path) as temporary:
        try:
            torch.save({"format": CHECKPOINT_FORMAT, **content}, temporary)
        except RuntimeError as error:  # how torch reports a full disk
            reason = " ".join(str(error).split())[:200]
            raise OSError(f"cannot write {path} (is the disk full?): {reason}") from None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint.

    Raises:
        MissingFileError: there is none.
        UsageError: the folder of a run.
        DataError: damaged, or another kind of file.
    """
    path = Path(path)
    if (path / "last.ckpt").is_file():
        raise UsageError(f"{path} is the folder of a run: its checkpoint is {path / 'last.ckpt'}")
    if not path.is_file():
        raise MissingFileError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"checkpoint {path} is damaged: {reason[:200]}") from None
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise DataError(f"{path} is not a training checkpoint ({CHECKPOINT_FORMAT})")
    return content
