# %% [markdown]
# # Descriptors as bytes, matched by COLMAP itself
# COLMAP's matcher takes 128 bytes a keypoint, as SIFT has them: never negative, of length 512, compared by their angle.
# Ours are floats of both signs and of length 1. Three steps make one of the other and keep the order of distances:
#
# 1. the mean of the 128 numbers is taken off (one direction of 128 is lost), and the length made 1 again;
# 2. they are multiplied by `SCALE` and `OFFSET` is added, so that the length is 512: `128 * OFFSET² + SCALE² = 512²`.
#    The angle between two such vectors is, for near ones, `SCALE / 512` times the distance between the originals, so a
#    ratio of angles is a ratio of distances;
# 3. they are rounded, and what falls below 0 is cut off (about one number in a hundred).
#
# The script measures what that costs: inliers after COLMAP's own matching and verification, bytes against floats.

# %%
import math
import shutil
from pathlib import Path

import numpy as np
import pycolmap
import torch

from kornia_hardnet8 import HardNet8Feature, example_pair
from kornia_hardnet8.lafs import colmap_from_lafs
from kornia_hardnet8.pair import read_image

SCALE = 160.0
OFFSET = math.sqrt((512**2 - SCALE**2) / 128)
MAX_RATIO = 0.9

out = Path("runs/examples/colmap_uint8")
shutil.rmtree(out, ignore_errors=True)
(out / "images").mkdir(parents=True)


def as_bytes(descs: torch.Tensor) -> np.ndarray:
    """Unit vectors (N, 128) as COLMAP's matcher wants them: (N, 128) uint8 of length 512."""
    centred = torch.nn.functional.normalize(descs - descs.mean(dim=1, keepdim=True), dim=1)
    return (OFFSET + SCALE * centred).round().clamp(0, 255).to(torch.uint8).numpy()


# %%
feature = HardNet8Feature(1500, select="response", precision="auto")
database_path = out / "database.db"
with pycolmap.Database.open(database_path) as database:
    ids, all_descs = [], []
    for path in example_pair():
        shutil.copy(path, out / "images")
        with torch.inference_mode():
            lafs, _, descs = feature.detect_and_describe(read_image(path))
        camera_id = database.write_camera(pycolmap.infer_camera_from_image(path))
        image_id = database.write_image(pycolmap.Image(name=path.name, camera_id=camera_id))
        database.write_keypoints(image_id, colmap_from_lafs(lafs))
        kind = pycolmap.FeatureExtractorType.SIFT
        database.write_descriptors(image_id, pycolmap.FeatureDescriptors(kind, as_bytes(descs)))
        ids.append(image_id)
        all_descs.append(descs)

# %% [markdown]
# COLMAP matches the bytes and verifies the matches:

# %%
options = pycolmap.FeatureMatchingOptions(use_gpu=False, num_threads=1)
options.sift.max_ratio = MAX_RATIO
options.sift.cpu_brute_force_matcher = True
verification = pycolmap.TwoViewGeometryOptions()
verification.ransac.random_seed = 0
pycolmap.match_exhaustive(
    database_path, matching_options=options, verification_options=verification, device=pycolmap.Device.cpu
)
with pycolmap.Database.open(database_path) as database:
    by_bytes = database.read_matches(*ids)
    inliers_of_bytes = len(database.read_two_view_geometry(*ids).inlier_matches)
print(f"bytes:  {len(by_bytes)} matches, {inliers_of_bytes} inliers")

# %% [markdown]
# The floats, matched by kornia with the same rule (both ways, the same ratio) and verified by COLMAP in the same way:

# %%
import kornia.feature as KF

_, matches = KF.match_smnn(*all_descs, MAX_RATIO)
by_floats = matches.numpy().astype(np.uint32)
cameras, points = [], []
with pycolmap.Database.open(database_path) as database:
    for image_id in ids:
        cameras.append(database.read_camera(database.read_image(image_id).camera_id))
        points.append(database.read_keypoints(image_id)[:, :2].astype(np.float64))
geometry = pycolmap.estimate_two_view_geometry(cameras[0], points[0], cameras[1], points[1], by_floats, verification)
inliers_of_floats = len(geometry.inlier_matches)
same = len(set(map(tuple, by_bytes.tolist())) & set(map(tuple, by_floats.tolist())))
print(f"floats: {len(by_floats)} matches, {inliers_of_floats} inliers; {same} matches are the same")
print(f"bytes keep {100 * inliers_of_bytes / inliers_of_floats:.0f} % of the inliers")
