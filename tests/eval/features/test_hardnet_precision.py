from __future__ import annotations

import pytest
import torch

from eval.features import load
from eval.features.base import NetworkDescriptor
from eval.features.hardnet import choose_precision
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.inference import best_precision


def test_precision_of_a_token() -> None:
    plain, fast = load("h7:untrained=true"), load("h7:untrained=true,precision=auto")
    assert isinstance(plain, NetworkDescriptor)
    assert isinstance(fast, NetworkDescriptor)
    assert plain.module.precision == "fp32"
    assert fast.module.precision == best_precision(plain.module)  # type: ignore[arg-type]
    patches = torch.rand(20, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (plain.describe(patches) * fast.describe(patches)).sum(dim=1).min() > 0.9
    assert plain.identity(12.0) != fast.identity(12.0)
    # Caches travel between machines, and "auto" is not the same on all of them.
    for precision in ("bf16", "int8"):
        fast.module._precision = precision
        assert fast.identity(12.0)["runs_in"].startswith(precision)
    assert "runs_in" not in plain.identity(12.0)
    with pytest.raises(UsageError, match="int8"):
        load("h7:untrained=true,precision=int9")


def test_a_flag_chooses_the_precision_where_the_token_does_not() -> None:
    plain, named, other = load("h7:untrained=true"), load("h7:untrained=true,precision=fp32"), load("rootsift")
    assert isinstance(plain, NetworkDescriptor)
    assert isinstance(named, NetworkDescriptor)
    before = plain.identity(12.0)
    choose_precision([plain, named, other], "auto")
    assert plain.module.precision == best_precision(named.module)  # type: ignore[arg-type]
    assert named.module.precision == "fp32"
    assert (plain.identity(12.0) == before) == (plain.module.precision == "fp32")
    choose_precision([other], "auto")
    with pytest.raises(UsageError, match="--precision fp32 changes nothing here"):
        choose_precision([named, other], "fp32")
