# %% [markdown]
# # Judge your own descriptor
# A descriptor is a class with `dim` and `describe`. Registered under the entry points `kornia_hardnet8.features`, its
# name is a token of every command: `--desc tiny rootsift`.
#
# In a package of your own, `pyproject.toml` registers it:
#
# ```
# [project.entry-points."kornia_hardnet8.features"]
# tiny = "tiny_descriptor:tiny"
# ```
#
# Here the package is written by hand into a folder, as `pip install` would leave it.

# %%
import subprocess
import sys
from pathlib import Path

MODULE = '''
import torch
import torch.nn.functional as F
from eval.features import Descriptor


class Tiny(Descriptor):
    """The patch itself, at 8 x 8 pixels."""

    dim = 64

    def describe(self, patches):
        small = F.adaptive_avg_pool2d(patches, 8).flatten(1)
        return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)


def tiny(token, weights):
    token.typed_options({})  # it has none: an unknown one is refused
    return Tiny(token, weights)
'''

out = Path("runs/examples/judge").resolve()
site = out / "site"
info = site / "tiny_descriptor-1.0.dist-info"
info.mkdir(parents=True, exist_ok=True)
(site / "tiny_descriptor.py").write_text(MODULE)
(info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-descriptor\nVersion: 1.0\n")
(info / "entry_points.txt").write_text("[kornia_hardnet8.features]\ntiny = tiny_descriptor:tiny\n")

# %% [markdown]
# Judged by the relative poses of the built-in scene, beside RootSIFT, 500 keypoints an image:

# %%
run = f"""
import sys
sys.path.insert(0, {str(site)!r})
from eval.cli import main
sys.exit(main("imw --task stereo --desc tiny rootsift --keypoints 500 --viz 0 --out {out / "results"}".split()))
"""
subprocess.run([sys.executable, "-c", run], check=True)

# %% [markdown]
# Is the difference real? Pair by pair, with an interval; one that holds 0 is no difference.

# %%
results = str(out / "results")
words = ["compare", results, results, "--desc-a", "tiny", "--desc-b", "rootsift"]
subprocess.run([sys.executable, "-m", "eval", *words], check=True)
