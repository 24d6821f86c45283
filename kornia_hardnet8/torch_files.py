"""Reading torch files without running code that they bring along.

``torch.load(weights_only=True)`` does the work. What the files of 2020 hold beside tensors (a reference to a fastai
function, a scikit-learn PCA) and the classes of a TorchScript archive are mapped to stand-ins that only keep what
they are given; every other reference is refused.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.projection import Projection


class _StandIn:
    """Keeps the arguments and the state of an object that is not made."""

    def __new__(cls, *args: Any) -> _StandIn:
        made = super().__new__(cls)
        made.args = args
        made.state = None
        return made

    args: tuple[Any, ...]
    state: Any

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Optimizer(_StandIn):
    pass


class _Array(_StandIn):
    pass


class _ArrayType(_StandIn):
    pass


class _DType(_StandIn):
    pass


class _Scalar(_StandIn):
    pass


class _PCA(_StandIn):
    pass


class _Script(_StandIn):
    pass


def _names() -> Iterator[tuple[type[_StandIn], str]]:
    for package in ("fastai2", "fastai"):
        for name in ("Adam", "SGD", "RMSProp", "RAdam", "QHAdam", "Larc", "Lamb", "Lookahead", "ranger"):
            yield _Optimizer, f"{package}.optimizer.{name}"
    for module in ("pca", "_pca"):
        yield _PCA, f"sklearn.decomposition.{module}.PCA"
    for core in ("core", "_core"):
        yield _Array, f"numpy.{core}.multiarray._reconstruct"
        yield _Scalar, f"numpy.{core}.multiarray.scalar"
    yield _ArrayType, "numpy.ndarray"
    yield _DType, "numpy.dtype"


STAND_INS = list(_names())
_MOST_CODE_BYTES = 64 << 20
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of torch's wrappers, and of modules that hold the network


def load_torch(path: Path, allowed: Iterable[Any] = (), check_sums: bool = True, mapped: bool = False) -> Any:
    """The content of a file of ``torch.save``, old or new container; nothing that it brings along is run.

    Args:
        path: the file.
        allowed: functions and classes beside tensors that it may refer to, as
            :func:`torch.serialization.add_safe_globals` takes them.
        check_sums: read every record of a new container and compare it with its checksum.
        mapped: leave the tensors of a new container on the disk.

    Raises:
        MissingFileError: no such file.
        DataError: the file is damaged, another kind of file, packed beyond its size, or refers to more than is allowed.
    """
    _check_container(path, check_sums)
    try:
        with _only(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many types for damaged files
        raise DataError(f"{path} is damaged or no file of torch: {_reason(error)}") from None


def read_torch_file(path: Path) -> Any:
    """The content of a file of ``torch.save``, or the attribute tree of a TorchScript archive.

    Returns:
        What was saved; a TorchScript archive gives a flat dictionary of dotted names and tensors.

    Raises:
        DataError: the file is damaged, or refers to anything but tensors, numbers, strings and what is named above.
    """
    _check_container(path, check_sums=True)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
                if any(name.endswith("/constants.pkl") for name in names) and len(pickles) == 1:
                    return _read_script(archive, pickles[0].removesuffix("data.pkl"))
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from None
    except Exception as error:  # torch raises many types for damaged files
        raise DataError(f"{path} is damaged or no weight file: {_reason(error)}") from None
    content = load_torch(path, STAND_INS, check_sums=False)
    try:
        _verify(content)
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from None
    return content


def state_dict_of(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state dict in what a file of weights holds, its names without the prefixes that wrappers give them.

    It is the content itself, or its entry ``state_dict``, ``model_state_dict`` or ``model``. Prefixes that all names
    share (``module.``, ``_orig_mod.``, ``model.``) are taken off.
    """
    for entry in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(entry), Mapping):
            content = content[entry]
            break
    prefix = next((p for p in _PREFIXES if content and all(str(name).startswith(p) for name in content)), None)
    if prefix is None:
        return content
    return state_dict_of({str(name).removeprefix(prefix): value for name, value in content.items()})


def _check_container(path: Path, check_sums: bool) -> None:
    """Refuse what is no file of torch, a container whose records cannot be in it, and one that is damaged."""
    if not path.is_file():
        raise MissingFileError(f"{path} is not there")
    with open(path, "rb") as file:
        head = file.read(256).lstrip().lower()
    if not head:
        raise DataError(f"{path} is empty")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{path} is a web page, not the file that it was meant to be: fetch the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a pointer of Git LFS, not the file: fetch the file, e.g. by `git lfs pull`")
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            packed = [record for record in records if record.compress_type != zipfile.ZIP_STORED]
            for record in packed:
                if "/code/" not in record.filename:  # of a TorchScript archive, which is not read
                    raise DataError(f"{path}: its record {record.filename} is compressed, which torch never does")
            total, code = (sum(record.file_size for record in part) for part in (records, packed))
            if total - code > path.stat().st_size or code > _MOST_CODE_BYTES:
                raise DataError(f"{path}: its records are larger than the file")
            damaged = archive.testzip() if check_sums else None
    except DataError:
        raise
    except Exception as error:  # zipfile raises many types for damaged files
        raise DataError(f"{path} is damaged or no file of torch: {_reason(error)}") from None
    if damaged is not None:
        raise DataError(f"{path} is damaged: its record {damaged} does not fit its checksum; fetch the file again")


def _reason(error: Exception) -> str:
    """The sentence of torch's many that says what was found, without its advice to trust the file."""
    text = " ".join(str(error).split())
    for start in ("WeightsUnpickler error: ", "Trying to load unsupported GLOBAL "):
        if start in text:
            text = text.split(start, 1)[1].split(" was not an allowed", 1)[0].split(" Please ", 1)[0]
            text = text.split(" Check the documentation", 1)[0]
            return f"it holds more than tensors, numbers and strings ({text[:150].rstrip('. ')})"
    return text[:200] or type(error).__name__


@contextmanager
def _only(names: Iterable[Any]) -> Iterator[None]:
    """Let torch's unpickler know these and nothing that the program has allowed elsewhere."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.serialization.add_safe_globals(list(names))
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _read_script(archive: zipfile.ZipFile, folder: str) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive by their dotted names; its code is not even read."""
    data = archive.read(f"{folder}data.pkl")
    script_names: list[tuple[type[_StandIn], str]] = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL" and str(argument).startswith(("__torch__.", "torch.jit._pickle ")):
            script_names.append((_Script, str(argument).replace(" ", ".")))
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as copy:
        copy.writestr("archive/data.pkl", data)
        for info in archive.infolist():
            inner = info.filename.removeprefix(folder)
            if inner.startswith("data/") or inner in ("version", "byteorder"):
                copy.writestr(f"archive/{inner}", archive.read(info))
    plain.seek(0)
    with _only(script_names):
        root = torch.load(plain, map_location="cpu", weights_only=True)
    return dict(_flatten(root, ""))


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, _Script):
        value = value.state
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))


def _verify(value: Any) -> None:
    """Refuse stand-ins for anything but numbers and a fitted PCA of them: they are harmless, but mean no good."""
    todo, seen = [value], set()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            todo.extend((*item.keys(), *item.values()))
        elif isinstance(item, list | tuple | set):
            todo.extend(item)
        elif isinstance(item, _Array):
            _array(item)
        elif isinstance(item, _Scalar):
            if len(item.args) != 2 or not isinstance(item.args[0], _DType):
                raise DataError("a numpy scalar in it is malformed")
            _code(item.args[0])
        elif isinstance(item, _PCA):
            todo.append(item.state)
        elif isinstance(item, _StandIn):
            raise DataError("it makes objects that are neither tensors, numbers, strings nor a PCA")


def projection_of_pca(value: Any) -> Projection:
    """The projection that a pickled scikit-learn PCA object holds.

    Raises:
        DataError: it is no such object, it whitens, or its arrays are not what they should be.
    """
    state = value.state if isinstance(value, _PCA) else None
    if not isinstance(state, dict) or not {"components_", "mean_"} <= set(state):
        raise DataError("its pca entry is no fitted scikit-learn PCA")
    if state.get("whiten"):
        raise DataError("its PCA whitens, which this network does not")
    components = _array(state["components_"]).T
    variance = state.get("explained_variance_")
    eigenvalues = torch.full((components.shape[1],), math.nan) if variance is None else _array(variance)
    return Projection(_array(state["mean_"]).float(), components.float().contiguous(), eigenvalues.float())


def _code(dtype: Any) -> str:
    """The type code of a pickled numpy type of plain numbers."""
    if not isinstance(dtype, _DType) or not dtype.args or dtype.args[0] not in ("f4", "f8", "i4", "i8", "b1"):
        raise DataError("it holds numpy values other than numbers")
    return str(dtype.args[0])


def _array(value: Any) -> Tensor:
    """A pickled numpy array of plain numbers."""
    try:
        if not isinstance(value, _Array):
            raise TypeError
        _, shape, dtype, fortran, data = value.state
        code = _code(dtype)
        if not isinstance(data, bytes):
            raise TypeError
        order = dtype.state[1] if dtype.state else "<"
        array = np.frombuffer(data, dtype=np.dtype(("<" if order in "=|" else order) + code))
        array = array.reshape(tuple(int(n) for n in shape), order="F" if fortran else "C")
    except (AttributeError, IndexError, TypeError, ValueError):
        raise DataError("its PCA holds something other than arrays of numbers") from None
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
