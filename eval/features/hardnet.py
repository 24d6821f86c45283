"""The HardNet family of this package, and kornia's own HardNet8 module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eval.features.base import Descriptor, NetworkDescriptor
from eval.features.tokens import Token, flag, one_of, positive
from eval.features.weights import load_strictly, read_weights
from kornia_hardnet8 import HardNet8, prepare_for_inference
from kornia_hardnet8.arch import ALIASES, ARCHS
from kornia_hardnet8.checkpoints import bundled_names
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.models import BUNDLED_DIR

_UNTRAINED_SEED = 0
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "auto")


def names() -> list[str]:
    """Tokens of this family: architectures and bundled models."""
    return sorted({*ARCHS, *ALIASES, *bundled_names()})


def hardnet8(token: Token, weights: Path | None) -> Descriptor:
    """A bundled model, a weight file (``@PATH``) or random weights (``untrained=true``).

    ``dim``: the output width; ``precision``: fp32 (default), bf16, fp16, int8 or auto.
    """
    options = token.typed_options({"dim": positive, "untrained": flag, "precision": one_of(*PRECISIONS)})
    dim = options.get("dim", 128)
    arch = token.name if token.name in ARCHS or token.name in ALIASES else None
    if options.get("untrained", False):
        if weights is not None or arch is None:
            raise UsageError(f"{token.text}: untrained=true goes with the name of an architecture and no weights")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_UNTRAINED_SEED)
            module = HardNet8(arch=arch, output_dim=dim)
        module.untrained = False  # as asked for
        return NetworkDescriptor(token, _prepared(module, options), dim, patch_size=module.patch_size)
    if weights is not None:
        module = HardNet8(weights, arch=arch, output_dim=dim)
    elif token.name in bundled_names():
        weights = BUNDLED_DIR / f"{token.name}.safetensors"
        module = HardNet8(token.name, output_dim=dim)
    else:
        raise UsageError(
            f"{token.text}: no bundled weights of this name (there are: {', '.join(bundled_names()) or 'none'}); "
            f"write {token.name}@PATH, or {token.name}:untrained=true for random weights"
        )
    return NetworkDescriptor(token, _prepared(module, options), dim, weights, module.patch_size)


def choose_precision(methods: Sequence[object], precision: str) -> None:
    """Run the networks of this library among ``methods`` in a precision, where their tokens name none.

    Raises:
        UsageError: a precision other than ``auto`` that no method obeys, or that is not available here.
    """
    is_obeyed = precision == "auto"
    for method in methods:
        if not isinstance(method, NetworkDescriptor) or not isinstance(method.module, HardNet8):
            continue
        if "precision" not in method.token.options:
            method.module = _prepared(method.module, {"precision": precision})
            is_obeyed = True
    if not is_obeyed:
        raise UsageError(
            f"--precision {precision} changes nothing here: it is for networks of this library whose token names none"
        )


def _prepared(module: HardNet8, options: Mapping[str, Any]) -> HardNet8:
    precision = options.get("precision", "fp32")
    return module if precision == "fp32" else prepare_for_inference(module, precision)


def kornia_hardnet8(token: Token, weights: Path | None) -> Descriptor:
    """``kornia.feature.HardNet8``: a state dict of it (``@PATH``), or random weights (``untrained=true``)."""
    import kornia.feature as KF

    untrained = token.typed_options({"untrained": flag}).get("untrained", False)
    if untrained == (weights is not None):
        raise UsageError(
            f"{token.text}: write {token.name}@PATH with kornia's weights (hardnet8v2.pt), or "
            f"{token.name}:untrained=true for random ones"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_UNTRAINED_SEED)
        module = KF.HardNet8(pretrained=False)
    if weights is not None:
        load_strictly(module, read_weights(weights), weights, "kornia's HardNet8")
    return NetworkDescriptor(token, module, 128, weights)
