"""Values computed elsewhere (``tests/vectors/vectors_training.json``) and small generated stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training_vectors import load_vectors
from train.stores.writer import create_store


@pytest.fixture(scope="session")
def cases() -> dict[str, dict[str, Any]]:
    return load_vectors()


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Commands called in this process may set the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_store(
    folder: Path, num_labels: int = 60, num_cams: int = 6, copies: int = 3, side: int = 48, seed: int = 0
) -> Path:
    """A store whose labels are smooth random textures, each copy with its own noise and camera."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side)), -1)
    waves = rng.normal(size=(num_labels, 6, 3)) * [4.0, 4.0, np.pi]
    clean = sum(np.sin(grid @ waves[:, k, :2].T + waves[:, k, 2]) for k in range(6)).transpose(2, 0, 1)
    labels = np.repeat(np.arange(num_labels) * 3 + 5, copies)
    noisy = 127 + 20 * np.repeat(clean, copies, axis=0) + rng.normal(scale=6.0, size=(len(labels), side, side))
    cams = (np.arange(len(labels)) * 7 // 3) % num_cams
    with create_store(folder, side) as writer:
        writer.append(
            np.clip(np.rint(noisy), 0, 255).astype(np.uint8), labels=labels, image_ids=cams, cam_ids=cams
        )  # fmt: skip
        writer.meta = {"crop": 1.5, "mr_size": 12.0, "built": {"command": "test"}, "sources": []}
    return folder


@pytest.fixture(scope="session")
def store_factory() -> Callable[..., Path]:
    return write_store


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_store: Path) -> Path:
    """The last checkpoint of a run of three steps."""
    from train.cli import main

    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["--ds", str(tiny_store), "--out", str(out), *FAST, "--steps", "3"]) == 0
    return out / "last.ckpt"


# The cheapest settings with which something is learned.
FAST = ["--arch", "h7nodrop", "--bs", "12", "--lr", "2e-3", "--schedule", "cosine", "--precision", "fp32"]
FAST += ["--threads", "1", "-q"]


@pytest.fixture(scope="session")
def fast() -> list[str]:
    return list(FAST)
