"""The wheel: built from the checkout, installed beside torch and kornia, used without a network."""

from __future__ import annotations

import configparser
import json
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import kornia
import numpy
import pytest
import safetensors
import torch

import kornia_hardnet8

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kornia_hardnet8"

DESCRIBE = """
import json, socket, sys

class NoNetwork(socket.socket):
    def connect(self, *args):
        raise AssertionError(f"connects to {args}")
    connect_ex = connect

def no_lookup(*args, **kwargs):
    raise AssertionError(f"looks up {args}")

socket.socket = NoNetwork
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = no_lookup

import importlib.util
import torch
import kornia_hardnet8

patches = torch.linspace(0, 1, 3 * 32 * 32).sin().mul(999).sin().view(3, 1, 32, 32)
with torch.inference_mode():
    descs = kornia_hardnet8.HardNet8(pretrained=True)(patches)
json.dump({
    "file": kornia_hardnet8.__file__,
    "version": kornia_hardnet8.__version__,
    "descs": descs.tolist(),
    "others": [
        name for name in ("common", "train", "eval", "benchmarks", "rendered") if importlib.util.find_spec(name)
    ],
}, sys.stdout)
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[:4]}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built in a copy: an old build/ folder would leak into it, a new one into the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "LICENSE-WEIGHTS"):
        shutil.copy(ROOT / name, source)
    (source / "docs").mkdir()
    shutil.copy(ROOT / "docs/package-index.md", source / "docs")
    for name in ("kornia_hardnet8", "common", "train", "eval", "benchmarks", "rendered"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    pip = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder]
    run(*pip, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_library_and_its_weights_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    kinds = ["*.py", "py.typed", "pictures/*.jpg", "weights/*.safetensors", "weights/*.md"]
    expected = {str(path.relative_to(ROOT)) for kind in kinds for path in PACKAGE.glob(kind)}
    assert files == expected
    assert "kornia_hardnet8/weights/h8E512.safetensors" in files
    assert {name.replace(".safetensors", ".md") for name in files if name.endswith(".safetensors")} <= files


def test_metadata_of_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
        assert {Path(name).name for name in archive.namelist()} >= {"LICENSE", "LICENSE-WEIGHTS"}
    required = {line.split(";")[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert {line.split("<")[0].split(">")[0] for line in required} == {"torch", "kornia", "numpy", "safetensors"}
    extras = {"all", "dask", "dev", "docs", "eval", "h5", "heic", "onnx", "opencv", "openvino", "poselib", "train"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Version"] == kornia_hardnet8.__version__


def test_installed_wheel_describes_patches_without_a_network(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=sys.platform != "win32")
    python = tmp_path / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    assert {path.name for path in site.iterdir()} == {
        "kornia_hardnet8",
        f"kornia_hardnet8-{kornia_hardnet8.__version__}.dist-info",
    }
    # Folders that a .pth file adds have their own .pth files ignored: the editable checkout stays out of sight.
    outer = {str(Path(module.__file__).parents[1]) for module in (torch, kornia, numpy, safetensors)}
    (site / "outer.pth").write_text("\n".join(sorted(outer)) + "\n")

    told = json.loads(run(python, "-I", "-c", DESCRIBE, cwd=tmp_path))
    assert Path(told["file"]).is_relative_to(site)
    assert told["version"] == kornia_hardnet8.__version__
    assert told["others"] == []
    patches = torch.linspace(0, 1, 3 * 32 * 32).sin().mul(999).sin().view(3, 1, 32, 32)
    with torch.inference_mode():
        expected = kornia_hardnet8.HardNet8(pretrained=True)(patches)
    torch.testing.assert_close(torch.tensor(told["descs"]), expected, rtol=0, atol=1e-5)
    assert abs(float(expected[0] @ expected[1])) < 0.999


def test_the_oldest_versions_are_the_lower_bounds_of_the_metadata() -> None:
    """What ``make test-oldest`` installs is what ``setup.cfg`` admits."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].split()
    bounds = {name: low for name, low in (line.split(",")[0].split(">=") for line in lines)}
    pinned = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = {name: version for name, version in (line.split("==") for line in pinned if not line.startswith("#"))}
    assert {name: (version + ".0.0").split(".")[:3] for name, version in bounds.items()} == {
        name: version.split(".")[:3] for name, version in oldest.items()
    }
