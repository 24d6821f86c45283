#!/usr/bin/env bash
# safetensors writes the metadata of a file in random order: the same tensors and metadata, saved again, are other bytes.
# Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 safetensors==0.8.0
"$folder/venv/bin/python" - "$folder" <<'EOF'
import hashlib
import sys
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

print("safetensors", safetensors.__version__)
tensors = {"weight": np.arange(6, dtype=np.float32)}
metadata = {name: "1" for name in "abcdefgh"}
hashes = set()
for number in range(10):
    path = Path(sys.argv[1]) / f"{number}.safetensors"
    save_file(tensors, path, metadata=metadata)
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
    hashes.add(hashlib.sha256(content).hexdigest())
    if number < 3:
        print(header)
    assert np.array_equal(load_file(path)["weight"], tensors["weight"])
print(f"10 files of the same content: {len(hashes)} different ones")
sys.exit(len(hashes) == 1)
EOF
