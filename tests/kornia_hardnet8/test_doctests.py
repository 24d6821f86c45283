"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import kornia_hardnet8

MODULES = [f"kornia_hardnet8.{info.name}" for info in pkgutil.iter_modules(kornia_hardnet8.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert {"HardNet8", "HardNet8Feature"} <= {test.name.rsplit(".", 1)[-1] for test in found}
