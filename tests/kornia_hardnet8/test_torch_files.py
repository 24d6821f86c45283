"""Files of torch: damaged, packed, of other kinds, and wrapped by others."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from kornia_hardnet8 import HardNet8
from kornia_hardnet8.checkpoints import Weights, load_weights, save_weights
from kornia_hardnet8.errors import DataError, MissingFileError
from kornia_hardnet8.torch_files import load_torch, state_dict_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(1000.0), "b": [1, "two"]}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


@pytest.mark.parametrize("mapped", [False, True])
def test_values(file: Path, mapped: bool) -> None:
    content = load_torch(file, mapped=mapped)
    assert content["b"] == [1, "two"]
    assert torch.equal(content["a"], torch.arange(1000.0))


def test_every_flipped_bit_of_a_tensor_is_seen(file: Path) -> None:
    whole = file.read_bytes()
    start = whole.index(torch.arange(1000.0).numpy().tobytes())
    for bit in np.random.default_rng(0).integers(0, 8 * 4000, 40).tolist():
        damaged = bytearray(whole)
        damaged[start + bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(damaged))
        with pytest.raises(DataError, match=r"a\.pt is damaged: its record a/data/0 does not fit its checksum"):
            load_torch(file)
        assert load_torch(file, check_sums=False)["b"] == [1, "two"]


def test_any_damage_is_one_line(file: Path) -> None:
    rng = np.random.default_rng(0)
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    for _ in range(60):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 5)] = rng.integers(0, 256, 5)
        file.write_bytes(damaged[: rng.integers(1, len(whole) + 1)].tobytes())
        try:
            load_torch(file)
        except DataError as error:
            assert "\n" not in str(error)


def test_records_that_unpack_to_more_than_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 20))
    with pytest.raises(DataError, match=r"its record a/data\.pkl is compressed"):
        load_torch(path)
    content = path.read_bytes()
    stored = content.replace(b"\x08\0", b"\0\0")  # says that it is not compressed
    path.write_bytes(stored)
    with pytest.raises(DataError, match="larger than the file"):
        load_torch(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html>\n<html>404</html>", "is a web page"),
        (b"\n<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "is a pointer of Git LFS"),
        (b"", "is empty"),
        (b"something else", "is damaged or no file of torch"),
    ],
)
def test_other_files_in_its_place(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    for read in (load_torch, load_weights):
        with pytest.raises(DataError, match=rf"a\.pt {message}"):
            read(tmp_path / "a.pt")
    with pytest.raises(MissingFileError, match=r"b\.pt is not there"):
        load_torch(tmp_path / "b.pt")


def test_state_dicts_by_any_name() -> None:
    state = {"features.0.weight": 1, "mean": 2}
    for prefix in ("", "module.", "_orig_mod.", "model.", "module._orig_mod."):
        named = {prefix + name: value for name, value in state.items()}
        for content in (named, {"state_dict": named, "epoch": 3}, {"model_state_dict": named}, {"model": named}):
            assert dict(state_dict_of(content)) == state
    mixed = {"model.a": 1, "b": 2}
    assert state_dict_of(mixed) == mixed
    assert state_dict_of({}) == {}


@pytest.mark.parametrize("entry", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "model.", "module."])
def test_wrapped_weights_load(entry: str, prefix: str, tmp_path: Path) -> None:
    network = HardNet8(arch="h7")
    state = {f"{prefix}features.{name}": value for name, value in network.features.state_dict().items()}
    torch.save({entry: state, "optimizer": {"lr": 0.1}}, tmp_path / "a.pt")
    weights = load_weights(tmp_path / "a.pt")
    assert weights.arch == "h7"
    for name, value in network.features.state_dict().items():
        assert torch.equal(weights.features[name], value)


def test_a_flipped_bit_of_our_own_files_is_seen(tmp_path: Path) -> None:
    network = HardNet8(arch="h7")
    path = tmp_path / "a.safetensors"
    save_weights(path, Weights("h7", dict(network.features.state_dict()), metadata={"mr_size": 12.0}))
    whole = path.read_bytes()
    assert load_weights(path).metadata == {"mr_size": 12.0}
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in np.random.default_rng(0).integers(start, len(whole), 10).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(DataError, match="does not fit its digest"):
            load_weights(path)
    path.write_bytes(whole.replace(b'"mr_size":"12.0"', b'"mr_size":"13.0"'))
    with pytest.raises(DataError, match="does not fit its digest"):
        load_weights(path)


@pytest.mark.parametrize("odd", ["meta", "sparse", "nested", "huge"])
def test_odd_tensors_are_refused(odd: str, tmp_path: Path) -> None:
    state = {f"features.{name}": value for name, value in HardNet8(arch="h8E512").features.state_dict().items()}
    vector, matrix = torch.zeros(512), torch.zeros(512, 128)
    parts = {
        "meta": (vector.to("meta"), matrix),
        "sparse": (vector, matrix.to_sparse()),
        "nested": (vector, torch.nested.nested_tensor([vector, vector], layout=torch.jagged)),
        "huge": (vector, torch.zeros(1).as_strided((512, 2**40), (0, 0))),
    }
    mean, components = parts[odd]
    torch.save({**state, "mean": mean, "components": components}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt"):
        load_weights(tmp_path / "a.pt")
