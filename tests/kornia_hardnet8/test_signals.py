"""Signals outside a command's work: while it is imported and while the interpreter ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
ROOT = Path(__file__).parents[2]

PROCESS = """
import os, signal, sys
signal.signal(signal.SIGINT, getattr(signal, sys.argv[3]))
from kornia_hardnet8.signals import answered_signals
assert "torch" not in sys.modules
class Last:
    def __del__(self):  # when the interpreter has taken its handlers down
        os.kill(os.getpid(), number)
number = getattr(signal, sys.argv[1])
last = Last() if sys.argv[2] == "teardown" else None
with answered_signals():
    try:
        if sys.argv[2] == "import":
            os.kill(os.getpid(), number)
            sum(range(10**5))
    except BaseException:
        pass  # as modules of others do while they are imported
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [("SIGTERM", 143, "error: stopped by SIGTERM\n"), ("SIGINT", 130, "error: interrupted\n")],
)
@pytest.mark.parametrize("moment", ["import", "teardown"])
def test_a_signal_is_answered_while_modules_load_and_not_heard_while_python_ends(
    number: str, code: int, line: str, moment: str
) -> None:
    done = _run(number, moment, "default_int_handler")
    assert done == ((code, line) if moment == "import" else (3, ""))


def test_a_job_that_is_not_to_hear_ctrl_c_does_not() -> None:
    assert _run("SIGINT", "import", "SIG_IGN") == (3, "")


def _run(number: str, moment: str, before: str) -> tuple[int, str]:
    words = [sys.executable, "-c", PROCESS, number, moment, before]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "command", [["eval", "dev", "--help"], ["train", "pca", "--help"], ["kornia_hardnet8", "match"]]
)
def test_a_signal_right_after_the_start_of_a_command_is_answered(command: list[str], tmp_path: Path) -> None:
    module = tmp_path / "torch.py"  # whose import takes seconds
    module.write_text(f"import os, signal, time\nos.kill(os.getpid(), {int(signal.SIGTERM)})\ntime.sleep(100)\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (143, "error: stopped by SIGTERM\n")
