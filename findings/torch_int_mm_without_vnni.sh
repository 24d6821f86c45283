#!/usr/bin/env bash
# torch._int_mm on a CPU without AVX-512 VNNI is a plain loop, tens of times as slow as the same product in float32, and no
# warning says so; the 8 bits of onednn.qlinear_pointwise (unsigned by signed, from -64 to 64, so that nothing overflows)
# give the same numbers in half the time of float32 on that same CPU. With VNNI _int_mm is fast.
# Exits non-zero when the loop takes less than 10 times as long as float32, or VNNI's product more than 3 times.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 torch==2.13.0
"$folder/venv/bin/python" - <<'EOF'
import sys
import time

import torch

torch.set_num_threads(1)
has_vnni = bool(torch.cpu.get_capabilities().get("avx512_vnni"))
print("torch", torch.__version__, "- AVX-512 VNNI:", has_vnni)
generator = torch.Generator().manual_seed(0)
queries = torch.randint(-127, 128, (512, 128), dtype=torch.int8, generator=generator)
database = torch.randint(-64, 65, (4096, 128), dtype=torch.int8, generator=generator)
floats = queries.float(), database.float()
packed = torch.ops.onednn.qlinear_prepack(database, [512, 128])
unsigned, one, zero = (queries.int() + 128).to(torch.uint8), torch.ones(1), torch.zeros(1, dtype=torch.long)
ways = {
    "torch.mm, float32": lambda: floats[0] @ floats[1].T,
    "torch._int_mm": lambda: torch._int_mm(queries, database.T),
    "onednn.qlinear_pointwise": lambda: torch.ops.onednn.qlinear_pointwise.default(
        unsigned, 1.0, 128, packed, one, zero, None, 1.0, 0, torch.float32, "none", [], ""
    ),
}
seconds, results = {}, []
for name, way in ways.items():
    results.append(way().float())
    times = []
    for _ in range(3):
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    seconds[name] = min(times)
    print(f"{name}: {1000 * seconds[name]:.1f} ms for (512, 128) x (128, 4096)")
same = all(torch.equal(result, results[0]) for result in results)
print("the same numbers:", same)
ratio = seconds["torch._int_mm"] / seconds["torch.mm, float32"]
print(f"_int_mm takes {ratio:.1f} times as long as float32")
sys.exit(not (same and (ratio < 3.0 if has_vnni else ratio > 10.0)))
EOF
