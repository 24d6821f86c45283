"""``python -m kornia_hardnet8``, and the commands that an installation adds."""

from __future__ import annotations

import importlib.util
import runpy
import sys

from kornia_hardnet8.signals import answered_signals


def main() -> int:
    """``kornia-hardnet8``; returns the exit code."""
    with answered_signals():
        from kornia_hardnet8 import cli

        return cli.main(sys.argv[1:])


def run_eval() -> None:
    """``kornia-hardnet8-eval``: ``python -m eval`` of the checkout, also where an ``eval.py`` of one's own lies."""
    _run_checkout("eval")


def run_train() -> None:
    """``kornia-hardnet8-train``: ``python -m train`` of the checkout, also where a ``train.py`` of one's own lies."""
    _run_checkout("train")


def _run_checkout(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        sys.exit(f"error: {package} is no part of the wheel: in a checkout, pip install -e '.[{package}]'")

    runpy.run_module(package, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.exit(main())
