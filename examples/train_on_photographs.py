# %% [markdown]
# # Train on your own photographs, in ten minutes on a CPU
# Each photograph is seen from several random views and in random light; the same place in two views is a positive pair.
# The loss and the rate are those that did best in short runs (docs/what-matters.md).

# %%
import os
import subprocess
import sys
from pathlib import Path

from eval.imw.demo import cached_scene

MINUTES = float(os.environ.get("MINUTES", "10"))
photographs = cached_scene() / "set_100" / "images"  # put the folder of your own photographs here; a few dozen or more
out = Path("runs/examples/train")


def run(command: str) -> None:
    """Run ``python -m …`` and stop where it fails."""
    print("python -m", command, flush=True)
    subprocess.run([sys.executable, "-m", *command.split()], check=True)


# %%
if not (out / "store").exists():
    run(f"train build photos {photographs} --out {out / 'store'} --views 4 --max-labels 300")
run(f"train info {out / 'store'} --sheet {out / 'sheet.png'}")  # look at it: a row is one place

# %%
run(f"train --recipe short --ds {out / 'store'} --holdout 0.05 --max-minutes {MINUTES:g} --out {out / 'run'}")
run(f"train plot {out / 'run'} --out {out / 'curves.png'}")

# %% [markdown]
# The projection, then one small file of weights. Training goes on from `last.ckpt` with
# `python -m train --resume runs/examples/train/run`.

# %%
run(f"train pca {out / 'run' / 'best.ckpt'} --ds {out / 'store'} --out {out / 'final.ckpt'}")
run(f"train bundle {out / 'final.ckpt'} --out {out / 'mine.safetensors'}")

# %%
from kornia_hardnet8 import HardNet8Feature, example_pair, match_pair

matches = match_pair(*example_pair(), HardNet8Feature(1024, descriptor=str(out / "mine.safetensors")))
print(f"{len(matches.ratios)} matches by day and by night, {matches.num_inliers} inliers with your own weights")
