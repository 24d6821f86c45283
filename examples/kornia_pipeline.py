# %% [markdown]
# # HardNet8 in kornia's pipeline
# `HardNet8` goes where `KF.HardNet8` would be. The detector has to cut patches of the support that the weights were
# trained for: `mr_size=12` (kornia's default is 6).

# %%
import kornia.feature as KF
import torch
from kornia.geometry import RANSAC
from kornia.io import ImageLoadType, load_image

from kornia_hardnet8 import HardNet8, HardNet8Feature, example_pair

day, night = (load_image(path, ImageLoadType.GRAY32)[None] for path in example_pair())

# %%
detector = KF.ScaleSpaceDetector(1024, mr_size=12.0, ori_module=KF.LAFOrienter())
feature = KF.LocalFeature(detector, KF.LAFDescriptor(HardNet8(pretrained=True)))
matcher = KF.LocalFeatureMatcher(feature, KF.DescriptorMatcher("smnn", 0.9))
with torch.inference_mode():
    matches = matcher({"image0": day, "image1": night})
print(len(matches["keypoints0"]), "matches with kornia's detector")

# %% [markdown]
# `HardNet8Feature` is a `KF.LocalFeature` by itself, with a faster DoG detector and the right support:

# %%
matcher = KF.LocalFeatureMatcher(HardNet8Feature(1024, precision="auto"), KF.DescriptorMatcher("smnn", 0.9))
with torch.inference_mode():
    matches = matcher({"image0": day, "image1": night})
points0, points1 = matches["keypoints0"].clone(), matches["keypoints1"].clone()
torch.manual_seed(0)
_, inliers = RANSAC("fundamental", inl_th=1.0, max_iter=20)(points0, points1)
print(f"{len(points0)} matches with HardNet8Feature, {int(inliers.sum())} agree with one geometry")
