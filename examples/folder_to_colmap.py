# %% [markdown]
# # A folder of photographs to a COLMAP model
# One command does it, `python -m eval reconstruct IMAGES --out MODEL`; here it is from Python. The
# photographs are those of the built-in scene, a market square at several times of day, which is rendered when it is
# first asked for.

# %%
from pathlib import Path

import numpy as np
import pycolmap

from eval.features.detect import DogSettings
from eval.imw.demo import cached_scene
from eval.reconstruct.pipeline import reconstruct
from eval.reconstruct.settings import ReconstructSettings

images = cached_scene() / "set_100" / "images"  # or your own folder
out = Path("runs/examples/model")
settings = ReconstructSettings(detector=DogSettings(num=1500, select="matchability"))
outcome = reconstruct(images, "h8small:precision=auto", out, settings)

# %% [markdown]
# What came out, and how well it fits:

# %%
model = outcome.models[0]
print(
    f"{model.num_reg_images()} of {len(list(images.iterdir()))} photographs, {model.num_points3D()} points, "
    f"{model.compute_mean_reprojection_error():.2f} px reprojection error"
)

# %% [markdown]
# It is a COLMAP model like any other: `colmap gui --import_path runs/examples/model/sparse/0 …`, or

# %%
same = pycolmap.Reconstruction(str(out / "sparse" / "0"))
for image in sorted(same.images.values(), key=lambda image: image.name)[:3]:
    print(image.name, "stands at", np.round(image.projection_center(), 2))
print(f"to look at it, with pictures: python -m eval reconstruct {images} --out MODEL")
