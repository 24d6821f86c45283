# %% [markdown]
# # OpenCV's keypoints in, OpenCV's matches out
# Any OpenCV detector with sizes and angles will do. `lafs_from_opencv` converts both conventions: angles run the other
# way, and `size` is 2 σ. `enable_precise_upscale` makes OpenCV's SIFT put keypoints where it detected them, not a
# quarter of a pixel beside.

# %%
import cv2
import numpy as np
import torch

from kornia_hardnet8 import HardNet8, example_pair
from kornia_hardnet8.lafs import lafs_from_opencv
from kornia_hardnet8.patches import extract_patches

network = HardNet8(pretrained=True)
sift = cv2.SIFT.create(nfeatures=1500, enable_precise_upscale=True)


def detect_and_describe(path: str) -> tuple[list[cv2.KeyPoint], np.ndarray]:
    """Keypoints of a photograph, and a row of 128 numbers for each."""
    gray = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    keypoints = list(sift.detect(gray))
    image = torch.from_numpy(gray).float() / 255
    with torch.inference_mode():
        patches = extract_patches(image, lafs_from_opencv(keypoints)[0], network.patch_size)
        return keypoints, network(patches).numpy()


# %%
(keypoints0, descs0), (keypoints1, descs1) = (detect_and_describe(str(path)) for path in example_pair())
pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(descs0, descs1, k=2)
matches = [best for best, second in pairs if best.distance < 0.9 * second.distance]
points0 = np.float32([keypoints0[match.queryIdx].pt for match in matches])
points1 = np.float32([keypoints1[match.trainIdx].pt for match in matches])
_, mask = cv2.findFundamentalMat(points0, points1, cv2.USAC_MAGSAC, 1.0, 0.9999, 10000)
print(f"{len(matches)} matches, {int(mask.sum())} inliers")

# %% [markdown]
# And back: what `HardNet8Feature` finds, as OpenCV's keypoints.

# %%
from kornia_hardnet8 import HardNet8Feature
from kornia_hardnet8.lafs import opencv_from_lafs
from kornia_hardnet8.pair import read_image

with torch.inference_mode():
    lafs, _, _ = HardNet8Feature(300, precision="auto").detect_and_describe(read_image(example_pair()[0]))
back = opencv_from_lafs(lafs)
(x, y), size, angle = back[0].pt, back[0].size, back[0].angle
print(f"{len(back)} keypoints, the first at ({x:.1f}, {y:.1f}), size {size:.1f}, {angle:.0f} degrees")
