#!/usr/bin/env bash
# Importing pycolmap takes SIGTERM away from Python: a handler that was set before is never called again, though
# signal.getsignal still names it; the process dies with a stack trace of C++. Set it again after the import.
# Exits non-zero when that is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 pycolmap==4.2.1
cat >"$folder/program.py" <<'EOF'
import os
import signal
import sys
import time


def end(*_: object) -> None:
    print("the handler was called")
    sys.exit(7)


signal.signal(signal.SIGTERM, end)
if sys.argv[1] != "without":
    import pycolmap

    print("pycolmap", pycolmap.__version__)
print("getsignal names the handler:", signal.getsignal(signal.SIGTERM) is end, flush=True)
if sys.argv[1] == "again":
    signal.signal(signal.SIGTERM, end)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(5)
EOF
codes=()
for how in without import again; do
    echo "-- $how"
    code=0
    "$folder/venv/bin/python" "$folder/program.py" "$how" 2>"$folder/errors" || code=$?
    echo "exit code $code, lines on stderr: $(grep -c . "$folder/errors" || true)"
    grep -m 1 SIGTERM "$folder/errors" || true
    codes+=("$code")
done
[ "${codes[*]}" = "7 143 7" ]
