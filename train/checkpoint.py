"""Training checkpoints: everything that a run needs to go on exactly, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kornia_hardnet8.checkpoints import CHECKPOINT_FORMAT
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.files import atomic_path
from kornia_hardnet8.torch_files import load_torch


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
    content = load_torch(path)
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise DataError(f"{path} is not a training checkpoint ({CHECKPOINT_FORMAT})")
    return content


def check_like(value: Any, expected: Any, where: str) -> None:
    """Compare a part of a checkpoint with what is there to take it: names, lengths, kinds of numbers, shapes.

    Raises:
        DataError: it is another; the message says where.
    """
    if isinstance(expected, dict):
        if not isinstance(value, dict) or value.keys() != expected.keys():
            raise DataError(f"{where} is {_kind(value)}, expected {_kind(expected)}")
        for name, part in expected.items():
            check_like(value[name], part, f"{where}.{name}")
    elif isinstance(expected, Tensor):
        if not _is_dense(value) or (value.shape, value.dtype) != (expected.shape, expected.dtype):
            raise DataError(f"{where} is {_kind(value)}, expected {_kind(expected)}")
    elif type(value) not in ((int, float) if isinstance(expected, float) else (type(expected),)):
        raise DataError(f"{where} is {_kind(value)}, expected {_kind(expected)}")


def check_optimizer(value: Any, expected: dict[str, Any], parameters: list[nn.Parameter], where: str) -> None:
    """Compare the state of an optimiser with that of one over these parameters, which may not have begun.

    Raises:
        DataError: other groups or parameters, or tensors of other shapes.
    """
    groups = value.get("param_groups") if isinstance(value, dict) else None
    states = value.get("state") if isinstance(value, dict) else None
    wanted = [group["params"] for group in expected["param_groups"]]
    if not isinstance(groups, list) or [g.get("params") if isinstance(g, dict) else None for g in groups] != wanted:
        raise DataError(f"{where} is of other parameters")
    if not isinstance(states, dict) or not states.keys() <= set(range(len(parameters))):
        raise DataError(f"{where}.state is {_kind(states)}, expected one entry a parameter")
    for number, state in states.items():
        for name, part in state.items() if isinstance(state, dict) else [("", state)]:
            fits = part is None or (_is_dense(part) and part.shape in ((), parameters[number].shape))
            if not name or not fits:
                raise DataError(f"{where}.state.{number}.{name} is {_kind(part)}, expected {_kind(parameters[number])}")
            if part is not None and not torch.isfinite(part).all():
                raise DataError(f"{where}.state.{number}.{name} holds NaN or infinity")


def _is_dense(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.is_nested:
        return False
    return value.layout == torch.strided and value.device.type != "meta"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor) and value.is_nested:
        return "a nested tensor"
    if isinstance(value, Tensor):
        return f"a {value.layout} tensor of {value.dtype} {tuple(value.shape)}".replace("torch.", "")
    if isinstance(value, dict):
        return f"entries {', '.join(map(str, list(value)[:4]))}{' …' if len(value) > 4 else ''}" if value else "empty"
    return f"{str(value)[:40]} ({type(value).__name__})"
