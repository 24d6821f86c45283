"""Values computed elsewhere: ``tests/vectors/vectors_training.json``."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

VECTORS = Path(__file__).parent / "vectors" / "vectors_training.json"


def load_vectors() -> dict[str, dict[str, Any]]:
    """All cases by name."""
    return {case["name"]: case for case in json.loads(VECTORS.read_text(encoding="utf-8"))["cases"]}


def decode(value: Any) -> Tensor:
    """An array of the vector file as a tensor."""
    if isinstance(value, dict):
        array = np.frombuffer(base64.b64decode(value["base64"]), dtype=value["dtype"]).reshape(value["shape"])
        return torch.from_numpy(array.copy())
    return torch.tensor(value)
