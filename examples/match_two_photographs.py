# %% [markdown]
# # Match two photographs
# Keypoints, HardNet8, mutual nearest neighbours and RANSAC in one call. The two pictures come with the package; put the
# paths of your own in their place.

# %%
from pathlib import Path

from kornia.io import write_image

from kornia_hardnet8 import HardNet8Feature, draw_matches, example_pair, match_pair

day, night = example_pair()
matches = match_pair(day, night)
print(f"{len(matches.ratios)} matches, {matches.num_inliers} agree with one geometry")

# %% [markdown]
# Where they are, in pixels, best ratio first:

# %%
order = matches.ratios.argsort()
for k in order[:5]:
    (x0, y0), (x1, y1) = matches.points0[k].tolist(), matches.points1[k].tolist()
    print(f"({x0:6.1f}, {y0:6.1f})  <->  ({x1:6.1f}, {y1:6.1f})   ratio {float(matches.ratios[k]):.2f}")

# %%
out = Path("runs/examples")
out.mkdir(parents=True, exist_ok=True)
write_image(out / "matches.jpg", draw_matches(day, night, matches, rejected=True))
print(f"look at {out / 'matches.jpg'}: green agrees, vermilion does not")

# %% [markdown]
# For many pairs build the feature once. In changing light 256 numbers find more than 128:

# %%
from kornia_hardnet8 import HardNet8

feature = HardNet8Feature(1024, descriptor=HardNet8(pretrained=True, output_dim=256), precision="auto")
print(match_pair(day, night, feature).num_inliers, "inliers with 1024 keypoints of 256 numbers")
