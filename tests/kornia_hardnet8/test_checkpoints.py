"""Weight files: every format in and out, damaged ones, and those that try to run code."""

from __future__ import annotations

import copyreg
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import kornia.feature as KF
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from kornia_hardnet8 import HardNet8, HardNet8Error
from kornia_hardnet8.checkpoints import CHECKPOINT_FORMAT, Weights, load_weights, save_kornia, save_weights
from kornia_hardnet8.errors import DataError, MissingFileError, UsageError
from kornia_hardnet8.projection import Projection

from .conftest import fill_module

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seven() -> HardNet8:
    module = HardNet8(arch="h7", output_dim=None)
    fill_module(module, 31)
    return module


@pytest.fixture(scope="module")
def big() -> HardNet8:
    """The network that kornia has, with a projection."""
    with torch.device("meta"):
        module = HardNet8()
    module = module.to_empty(device="cpu").eval()
    fill_module(module, 32)
    return module


@pytest.fixture(scope="module")
def patches() -> Tensor:
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def features_of(module: HardNet8) -> dict[str, Tensor]:
    return {k.removeprefix("features."): v for k, v in module.state_dict().items() if k.startswith("features.")}


def prefixed(module: HardNet8) -> OrderedDict[str, Tensor]:
    return OrderedDict((k, v) for k, v in module.state_dict().items() if k.startswith("features."))


def describe(module: Callable[[Tensor], Tensor], patches: Tensor) -> Tensor:
    with torch.no_grad():
        return module(patches)


class PCA:
    """Pickled under scikit-learn's name."""


def Adam() -> None:  # noqa: N802
    """Pickled under fastai's name."""


@pytest.fixture
def foreign_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules under the names that the files of 2020 refer to; they are gone when those files are read."""
    for name in ("fastai2", "fastai2.optimizer", "sklearn", "sklearn.decomposition", "sklearn.decomposition._pca"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for thing, name in ((PCA, "sklearn.decomposition._pca"), (Adam, "fastai2.optimizer")):
        monkeypatch.setattr(thing, "__module__", name)
        monkeypatch.setattr(sys.modules[name], thing.__name__, thing, raising=False)
    yield


def pca_object(components: Tensor, mean: Tensor, **more: Any) -> PCA:
    """A fitted PCA as scikit-learn 0.22 leaves it."""
    pca = PCA()
    pca.__dict__.update(
        n_components=len(components), copy=True, whiten=False, svd_solver="auto", tol=0.0, iterated_power="auto",
        random_state=None, n_features_=components.shape[1], n_samples_=450092, n_components_=len(components),
        components_=components.numpy(), mean_=mean.numpy(), noise_variance_=np.float64(1e-4),
        explained_variance_=np.linspace(1, 0.1, len(components)), _sklearn_version="0.22.2",
    )  # fmt: skip
    pca.__dict__.update(more)
    return pca


def save_2020(path: Path, module: HardNet8, arch: str, pca: PCA | None = None, zipped: bool = False) -> Path:
    content: dict[str, Any] = {
        "epoch": 10, "state_dict": prefixed(module), "optimizer": Adam, "model_arch": arch, "save_name": "id:0_arch:h7",
    }  # fmt: skip
    if pca is not None:
        content |= {"pca": pca, "pca_save_name": "h7pca32lib"}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


# -- ours --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 0.0), (torch.float16, 1e-3)])
def test_ours(dtype: torch.dtype, atol: float, seven: HardNet8, patches: Tensor, tmp_path: Path) -> None:
    projection = Projection(torch.rand(128), torch.rand(128, 128), torch.rand(128))
    weights = Weights("h7", features_of(seven), projection, {"mr_size": 12.0, "note": "two words", "steps": [1, 2]})
    save_weights(tmp_path / "w.safetensors", weights, dtype)
    assert os.listdir(tmp_path) == ["w.safetensors"]
    found = load_weights(tmp_path / "w.safetensors")
    assert (found.arch, found.metadata) == ("h7", weights.metadata)
    for key, value in weights.features.items():
        torch.testing.assert_close(found.features[key], value, atol=atol, rtol=atol)
    assert found.projection is not None
    torch.testing.assert_close(found.projection.components, projection.components, atol=atol, rtol=atol)
    assert torch.equal(found.projection.mean, projection.mean)
    assert torch.equal(found.projection.eigenvalues, projection.eigenvalues)
    expected = describe(seven, patches)
    torch.testing.assert_close(
        describe(HardNet8(tmp_path / "w.safetensors", output_dim=None), patches), expected, atol=atol, rtol=0
    )


def test_training_checkpoints(seven: HardNet8, patches: Tensor, tmp_path: Path) -> None:
    projection = {"mean": torch.zeros(128), "components": torch.eye(128), "eigenvalues": torch.ones(128)}
    content = {"format": CHECKPOINT_FORMAT, "arch": "h7", "features": features_of(seven), "metadata": {"mr_size": 12.0}}
    torch.save(content | {"optimizer": {"state": {0: torch.rand(3)}}}, tmp_path / "a.ckpt")
    torch.save(content | {"projection": projection}, tmp_path / "b.ckpt")
    assert load_weights(tmp_path / "a.ckpt").projection is None
    for name in ("a.ckpt", "b.ckpt"):
        assert load_weights(tmp_path / name).metadata == {"mr_size": 12.0}
        module = HardNet8.from_checkpoint(tmp_path / name)
        torch.testing.assert_close(describe(module, patches), describe(seven, patches), atol=1e-6, rtol=0)


# -- kornia's ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_kornias_bare_state_dict(zipped: bool, big: HardNet8, patches: Tensor, tmp_path: Path) -> None:
    theirs = KF.HardNet8(pretrained=False).eval()
    theirs.load_state_dict(big.state_dict())
    torch.save(theirs.state_dict(), tmp_path / "hardnet8v2.pt", _use_new_zipfile_serialization=zipped)
    module = HardNet8.from_checkpoint(tmp_path / "hardnet8v2.pt")
    assert (module.arch, module.output_dim) == ("h8E512", 128)
    assert torch.equal(describe(module, patches), describe(big, patches))
    torch.testing.assert_close(describe(module, patches), describe(theirs, patches), atol=1e-6, rtol=0)


def test_kornias_hardnet_of_2017(seven: HardNet8, patches: Tensor, tmp_path: Path) -> None:
    """Older files lack the counts of batches."""
    state = {k: v for k, v in prefixed(seven).items() if not k.endswith("num_batches_tracked")}
    torch.save({"epoch": 9, "state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    module = HardNet8.from_checkpoint(tmp_path / "old.pth")
    assert (module.arch, module.output_dim) == ("h7", 128)
    assert torch.equal(describe(module, patches), describe(seven, patches))


def test_state_dicts_of_wrapped_and_half_modules(seven: HardNet8, patches: Tensor, tmp_path: Path) -> None:
    state = {f"module.{k}": v.half() if v.is_floating_point() else v for k, v in prefixed(seven).items()}
    torch.save(state, tmp_path / "w.pt")
    module = HardNet8.from_checkpoint(tmp_path / "w.pt")
    assert module.features[0].weight.dtype == torch.float32
    torch.testing.assert_close(describe(module, patches), describe(seven, patches), atol=1e-3, rtol=0)


def test_ours_to_kornia_and_back(big: HardNet8, patches: Tensor, tmp_path: Path) -> None:
    projection = Projection(big.mean, big.components, torch.ones(128))
    save_weights(tmp_path / "w.safetensors", Weights("h8E512", features_of(big), projection))
    first = load_weights(tmp_path / "w.safetensors")
    save_kornia(tmp_path / "k.pt", first)
    theirs = KF.HardNet8(pretrained=False).eval()
    theirs.load_state_dict(torch.load(tmp_path / "k.pt", weights_only=True), strict=True)
    back = HardNet8(tmp_path / "k.pt")
    expected = describe(HardNet8(tmp_path / "w.safetensors"), patches)
    assert torch.equal(describe(back, patches), expected)
    torch.testing.assert_close(describe(theirs, patches), expected, atol=1e-6, rtol=0)


def test_seven_layers_to_kornias_hardnet(seven: HardNet8, patches: Tensor, tmp_path: Path) -> None:
    save_kornia(tmp_path / "k.pth", Weights("h7", features_of(seven)))
    theirs = KF.HardNet(pretrained=False).eval()
    theirs.load_state_dict(torch.load(tmp_path / "k.pth", weights_only=True)["state_dict"], strict=True)
    torch.testing.assert_close(describe(theirs, patches), describe(seven, patches), atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="no module"):
        save_kornia(
            tmp_path / "x.pt", Weights("h7", features_of(seven), Projection(*map(torch.ones, ([128], [128, 1], [1]))))
        )
    assert not (tmp_path / "x.pt").exists()


# -- 2020 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("fortran", [False, True])
def test_files_of_2020(
    zipped: bool, fortran: bool, seven: HardNet8, patches: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    basis, _ = torch.linalg.qr(torch.randn(128, 128, dtype=torch.float64))
    components, mean = basis[:32], 0.05 * torch.randn(128)
    request.getfixturevalue("foreign_modules")
    pca = pca_object(components, mean)
    if fortran:
        pca.components_ = np.asfortranarray(pca.components_)
    save_2020(tmp_path / "pca.pt", seven, "h7pca32", pca, zipped)
    save_2020(tmp_path / "plain.pt", seven, "h1", None, zipped)
    for name in [name for name in sys.modules if name.split(".")[0] in ("fastai2", "sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    module = HardNet8.from_checkpoint(tmp_path / "pca.pt")
    assert (module.arch, module.output_dim) == ("h7", 32)
    raw = describe(seven, patches)
    torch.testing.assert_close(
        describe(module, patches), F.normalize((raw - mean) @ components.T.float()), atol=1e-6, rtol=0
    )
    found = load_weights(tmp_path / "pca.pt").projection
    assert found is not None
    torch.testing.assert_close(found.eigenvalues, torch.linspace(1, 0.1, 32))
    plain = HardNet8.from_checkpoint(tmp_path / "plain.pt")
    assert (plain.arch, plain.output_dim) == ("h7", 128)
    assert torch.equal(describe(plain, patches), raw)


@pytest.mark.usefixtures("foreign_modules")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"whiten": True}, "whitens"),
        ({"components_": None}, "arrays of numbers"),
        ({"components_": np.array([[object()]])}, "numbers"),
        ({"components_": np.zeros((4, 127))}, "mean"),
        ({"mean_": np.full(128, np.nan)}, "NaN"),
        ({"noise_variance_": np.array(["text"])}, "numbers"),
    ],
)
def test_bad_pcas_of_2020(change: dict[str, Any], words: str, seven: HardNet8, tmp_path: Path) -> None:
    save_2020(tmp_path / "w.pt", seven, "h7pca4", pca_object(torch.eye(4, 128), torch.zeros(128), **change))
    with pytest.raises(DataError, match=words):
        load_weights(tmp_path / "w.pt")


# -- TorchScript -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [torch.jit.script, lambda m: torch.jit.trace(m, torch.rand(2, 1, 32, 32))])
def test_script_archives(how: Callable[[Any], Any], patches: Tensor, tmp_path: Path) -> None:
    module = HardNet8(arch="h7", output_dim=16)
    fill_module(module, 4)
    with torch.no_grad():
        how(module).save(str(tmp_path / "w.jitpt"))
    found = HardNet8.from_checkpoint(tmp_path / "w.jitpt")
    assert (found.arch, found.output_dim) == ("h7", 16)
    assert torch.equal(describe(found, patches), describe(module, patches))


def test_the_code_of_a_script_archive_is_not_run(seven: HardNet8, tmp_path: Path) -> None:
    torch.jit.script(seven).save(str(tmp_path / "w.jitpt"))
    with zipfile.ZipFile(tmp_path / "w.jitpt") as source, zipfile.ZipFile(tmp_path / "x.jitpt", "w") as copy:
        for info in source.infolist():
            code = "/code/" in info.filename and info.filename.endswith(".py")
            copy.writestr(info.filename, b"not even code" if code else source.read(info))
    with pytest.raises(RuntimeError):
        torch.jit.load(str(tmp_path / "x.jitpt"))
    found = load_weights(tmp_path / "x.jitpt")
    assert all(torch.equal(found.features[key], value) for key, value in features_of(seven).items())


def test_a_script_archive_with_the_projection_as_a_linear_layer(
    seven: HardNet8, patches: Tensor, tmp_path: Path
) -> None:
    class Layout(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = seven.features
            self.register_buffer("mean", torch.linspace(-0.1, 0.1, 128))
            self.pca = torch.nn.Linear(128, 24, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.pca(self.features(x).flatten(1) - self.mean)

    layout = Layout()
    with torch.no_grad():
        torch.jit.trace(layout, patches).save(str(tmp_path / "w.jitpt"))
        expected = F.normalize((seven(patches) - layout.mean) @ layout.pca.weight.T)
    found = HardNet8.from_checkpoint(tmp_path / "w.jitpt")
    torch.testing.assert_close(describe(found, patches), expected, atol=1e-6, rtol=0)


# -- files that try to run code ----------------------------------------------------------------------------------------


class Calls:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


class Global:
    """Pickled as a reference by name, whether or not it exists here."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> None:
        """Pickle asks that what is to be called can be."""


class HandPickler(pickle._Pickler):  # type: ignore[name-defined]
    """Protocol 2, with :class:`Global` written as it stands."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_global_by_name(self, value: Global) -> None:
        module, _, name = value.name.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())

    dispatch[Global] = save_global_by_name


def hand_made(path: Path, data: bytes, zipped: bool) -> Path:
    """A torch file, new or old container, around a pickle."""
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", b"3\n")
            archive.writestr("archive/byteorder", b"little")
    else:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        parts = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, system)]
        path.write_bytes(b"".join(parts) + data + pickle.dumps([], 2))
    return path


def evil_pickles(command: str) -> dict[str, bytes]:
    shell = Calls(os.system, command)
    inner = pickle.dumps(shell, 2)
    boxed = io.BytesIO()
    torch.save({"state_dict": shell}, boxed)
    setstate = pickle.PROTO + b"\x02" + b"cos\nsystem\n" + b"}" + b"b."
    build_on_class = (
        pickle.PROTO + b"\x02" + b"cfastai2.optimizer\nAdam\n}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb."
    )
    reduce_text = (
        pickle.PROTO + b"\x02cposix\nsystem\nX" + struct.pack("<I", len(command)) + command.encode() + b"\x85R."
    )
    values: dict[str, Any] = {
        "os.system": shell,
        "deep in lists and keys": {"state_dict": {"features.0.weight": [({"a": (1, [shell])},)]}},
        "eval": Calls(eval, f"__import__('os').system({command!r})"),
        "exec": Calls(exec, f"__import__('os').system({command!r})"),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "subprocess": Calls(subprocess.check_call, command.split()),
        "a storage that unpickles": Calls(torch.storage._load_from_bytes, boxed.getvalue()),
        "torch.load": Calls(torch.load, io.BytesIO, "x"),
        "pickle.loads": Calls(pickle.loads, inner),
        "numpy scalar of objects": Calls(
            Global("numpy.core.multiarray.scalar"), Calls(Global("numpy.dtype"), "O"), inner
        ),
        "numpy array of objects": {"pca": Calls(Global("numpy.core.multiarray._reconstruct"), Global("os.system"))},
        "numpy.load": Calls(np.load, "x", None, True),
        "functools.partial": Calls(__import__("functools").partial, os.system, command),
        "operator.methodcaller": Calls(__import__("operator").methodcaller, "system", command),
        "an optimizer that is called": Calls(Global("fastai2.optimizer.Adam"), command),
        "unlisted names of known modules": Calls(Global("sklearn.decomposition._pca.os.system"), command),
        "torch.jit classes outside archives": Calls(Global("__torch__.os.system"), command),
        "torch.hub": Calls(torch.hub.load, "somebody/something", "model"),
        "runpy": Calls(Global("runpy.run_path"), "x.py"),
    }
    made = {"state on a function": setstate, "state on a stand-in class": build_on_class, "a bare reduce": reduce_text}
    for name, value in values.items():
        buffer = io.BytesIO()
        HandPickler(buffer, 2).dump(value)
        made[name] = buffer.getvalue()
    return made


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", sorted(evil_pickles("touch x")))
def test_files_that_run_code_are_refused(name: str, zipped: bool, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    data = evil_pickles(f"touch {mark}")[name]
    if name in ("os.system", "eval", "a bare reduce", "pickle.loads"):  # the sample would really run
        pickle.loads(data)
        assert mark.exists()
        mark.unlink()
    path = hand_made(tmp_path / "evil.pt", data, zipped)
    with pytest.raises(HardNet8Error) as caught:
        load_weights(path)
    assert not mark.exists()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert "add_safe_globals" not in message


@pytest.mark.parametrize("zipped", [False, True])
def test_the_extension_registry_is_no_way_in(zipped: bool, tmp_path: Path) -> None:
    code = 0xF0
    copyreg.add_extension("os", "system", code)
    try:
        mark = tmp_path / "ran"
        data = (
            b"\x80\x02\x82"
            + bytes([code])
            + b"X"
            + struct.pack("<I", len(f"touch {mark}"))
            + f"touch {mark}".encode()
            + b"\x85R."
        )
        pickle.loads(data)
        assert mark.exists()
        mark.unlink()
        with pytest.raises(DataError):
            load_weights(hand_made(tmp_path / "evil.pt", data, zipped))
        assert not mark.exists()
    finally:
        copyreg.remove_extension("os", "system", code)


def test_what_a_program_allows_elsewhere_is_not_allowed_here(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = hand_made(tmp_path / "evil.pt", pickle.dumps(Calls(os.system, f"touch {mark}"), 2), True)
    with torch.serialization.safe_globals([os.system]):
        with pytest.raises(DataError):
            load_weights(path)
        assert os.system in torch.serialization.get_safe_globals()
    assert not mark.exists()


def test_script_archives_that_run_code_are_refused(seven: HardNet8, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.jit.script(seven).save(str(tmp_path / "w.jitpt"))
    with zipfile.ZipFile(tmp_path / "w.jitpt") as source, zipfile.ZipFile(tmp_path / "x.jitpt", "w") as copy:
        for info in source.infolist():
            evil = info.filename.endswith("/data.pkl")
            copy.writestr(
                info.filename, pickle.dumps(Calls(os.system, f"touch {mark}"), 2) if evil else source.read(info)
            )
    with pytest.raises(DataError, match="more than tensors"):
        load_weights(tmp_path / "x.jitpt")
    assert not mark.exists()


# -- damaged and wrong files -------------------------------------------------------------------------------------------


def all_formats(folder: Path, module: HardNet8) -> list[Path]:
    save_weights(folder / "ours.safetensors", Weights(module.arch, features_of(module)), torch.float32)
    torch.save(module.state_dict(), folder / "new.pt")
    torch.save({"state_dict": prefixed(module)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    torch.jit.script(module).save(str(folder / "script.jitpt"))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_truncated_files(share: float, seven: HardNet8, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    for path in all_formats(tmp_path / "whole", seven):
        cut = tmp_path / path.name
        data = path.read_bytes()
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError) as caught:
            load_weights(cut)
        assert str(cut) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_foreign_files(tmp_path: Path, seven: HardNet8) -> None:
    samples = {
        "text.pt": b"these are no weights",
        "text.safetensors": b"these are no weights",
        "header.safetensors": struct.pack("<Q", 2**62) + b"{}",
        "long_header.safetensors": struct.pack("<Q", 10**9) + b"{" * 1000,
        "overlap.safetensors": _safetensors(
            {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**9]}}, b"0" * 16
        ),
        "type.safetensors": _safetensors({"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}, b"0" * 16),
    }
    for name, data in samples.items():
        (tmp_path / name).write_bytes(data)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pt")
    torch.save({"format": CHECKPOINT_FORMAT, "arch": "h7"}, tmp_path / "hollow.ckpt")
    torch.save({"state_dict": 3}, tmp_path / "number.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError) as caught:
            load_weights(path)
        assert str(path) in str(caught.value), caught.value
        assert "\n" not in str(caught.value)


def _safetensors(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _spoilt(seven: HardNet8, **changes: Any) -> dict[str, Any]:
    content = {"format": CHECKPOINT_FORMAT, "arch": "h7", "features": features_of(seven)}
    for key, value in changes.items():
        if value is None:
            del content["features"][key]
        else:
            content["features"][key] = value
    return content


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"0.weight": torch.zeros(32, 1, 5, 5)}, ["features.0.weight", "(32, 1, 5, 5)", "(32, 1, 3, 3)"]),
        ({"0.weight": None}, ["features.0.weight", "missing"]),
        ({"99.weight": torch.zeros(1)}, ["features.99.weight", "extra"]),
        ({"0.weight": "text"}, ["features.0.weight", "str"]),
        ({"0.weight": torch.full((32, 1, 3, 3), float("nan"))}, ["features.0.weight", "NaN"]),
        ({"0.weight": torch.zeros(32, 1, 3, 3).to_sparse()}, ["features.0.weight", "plain"]),
    ],
)
def test_wrong_features(changes: dict[str, Any], words: list[str], seven: HardNet8, tmp_path: Path) -> None:
    torch.save(_spoilt(seven, **changes), tmp_path / "w.ckpt")
    with pytest.raises(DataError) as caught:
        load_weights(tmp_path / "w.ckpt")
    assert all(word in str(caught.value) for word in ["w.ckpt", *words])


@pytest.mark.parametrize(
    ("projection", "words"),
    [
        ({"mean": torch.zeros(128)}, "components"),
        ({"mean": torch.zeros(64), "components": torch.eye(64), "eigenvalues": torch.ones(64)}, "64 dimensions.*128"),
        ({"mean": torch.zeros(128), "components": torch.eye(64), "eigenvalues": torch.ones(64)}, "mean"),
        ({"mean": torch.zeros(128), "components": [1], "eigenvalues": torch.ones(64)}, "components"),
        ("text", "lacks mean"),
    ],
)
def test_wrong_projections(projection: Any, words: str, seven: HardNet8, tmp_path: Path) -> None:
    torch.save(_spoilt(seven) | {"projection": projection}, tmp_path / "w.ckpt")
    with pytest.raises(DataError, match=words):
        load_weights(tmp_path / "w.ckpt")


def test_the_wrong_architecture_is_named(seven: HardNet8, tmp_path: Path) -> None:
    torch.save(_spoilt(seven) | {"arch": "h8"}, tmp_path / "w.ckpt")
    with pytest.raises(DataError, match="is not h8: features"):
        load_weights(tmp_path / "w.ckpt")
    torch.save(_spoilt(seven) | {"arch": "h99"}, tmp_path / "w.ckpt")
    with pytest.raises(DataError, match="unknown architecture"):
        load_weights(tmp_path / "w.ckpt")
    torch.save({"features.0.weight": torch.zeros(7, 1, 3, 3)}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="fits no known architecture"):
        load_weights(tmp_path / "w.pt")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.pt"):
        load_weights(tmp_path / "none.pt")
    with pytest.raises(UsageError, match="no bundled model"):
        load_weights("h8E5l2")
    with pytest.raises(HardNet8Error):
        load_weights(tmp_path)


# -- the command -------------------------------------------------------------------------------------------------------


def convert(*arguments: str | Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "train", "convert", *map(str, arguments)]
    if limit is not None:  # a file that may not grow beyond so many bytes stands for a full disk
        code = (
            "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
            "sys.argv = sys.argv[1:]; runpy.run_module('train', run_name='__main__')"
        )
        command = [sys.executable, "-c", code, "train", *command[3:]]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_convert(seven: HardNet8, patches: Tensor, tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed(seven)}, tmp_path / "in.pth")
    done = convert(tmp_path / "in.pth", tmp_path / "ours.safetensors")
    assert done.returncode == 0, done.stderr
    assert "h7" in done.stdout
    done = convert(tmp_path / "ours.safetensors", tmp_path / "back.pth")
    assert done.returncode == 0, done.stderr
    module = HardNet8.from_checkpoint(tmp_path / "back.pth")
    assert torch.equal(describe(module, patches), describe(seven, patches))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.pth", "in.pth", "ours.safetensors"]


def test_convert_refuses(seven: HardNet8, tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed(seven)}, tmp_path / "in.pth")
    for arguments, code, words in (
        ((tmp_path / "none.pth", tmp_path / "o.safetensors"), 1, "none.pth"),
        ((tmp_path / "in.pth", tmp_path / "o.bin"), 2, ".safetensors"),
        ((tmp_path / "in.pth", tmp_path / "o.safetensors", "--to", "kornia"), 2, ".pt"),
    ):
        done = convert(*arguments)
        assert done.returncode == code
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as Unix does")
@pytest.mark.parametrize("name", ["o.safetensors", "o.pth"])
def test_a_full_disk_leaves_nothing(name: str, seven: HardNet8, tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed(seven)}, tmp_path / "in.pth")
    (tmp_path / "out").mkdir()
    done = convert(tmp_path / "in.pth", tmp_path / "out" / name, limit=1_000_000)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_same_weights_give_the_same_file(suffix: str, tmp_path: Path) -> None:
    weights = load_weights("h8E512")
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "two", "three", "four")]
    for path in files:
        weights = Weights(weights.arch, weights.features, weights.projection, dict(reversed(weights.metadata.items())))
        (save_weights if suffix == ".safetensors" else save_kornia)(path, weights)
    assert len({path.read_bytes() for path in files}) == 1
    read = load_weights(files[0])
    assert all(torch.equal(value, weights.features[key]) for key, value in read.features.items())
    if suffix == ".safetensors":
        assert read.metadata == weights.metadata
