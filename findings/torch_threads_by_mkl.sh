#!/usr/bin/env bash
# torch on x86 takes its number of threads from MKL, not from OpenMP: where both variables are set MKL_NUM_THREADS wins, in
# both directions, and OMP_NUM_THREADS alone passes through MKL, which cuts it to the cores there are. So OMP_NUM_THREADS=1
# does not hold a worker to one thread when its user has set the other variable.
# Exits non-zero when OMP_NUM_THREADS decides although MKL_NUM_THREADS is set. It needs two cores or more.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 torch==2.13.0
"$folder/venv/bin/python" - <<'EOF'
import os
import subprocess
import sys

import torch

print("torch", torch.__version__, "- MKL:", torch.backends.mkl.is_available(), "- processors:", os.cpu_count())
bare = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def threads(**variables):
    command = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    given = {f"{name}_NUM_THREADS": str(value) for name, value in variables.items()}
    done = subprocess.run(command, env=bare | given, capture_output=True, text=True, check=True)
    print(" ".join(f"{name}={value}" for name, value in given.items()), "->", done.stdout.strip(), "thread(s)")
    return int(done.stdout)


alone = threads(OMP=1), threads(OMP=2), threads(OMP=4 * os.cpu_count())
both = threads(OMP=1, MKL=2), threads(OMP=2, MKL=1)
sys.exit(not (alone[:2] == (1, 2) and alone[2] <= os.cpu_count() and both == (2, 1)))
EOF
