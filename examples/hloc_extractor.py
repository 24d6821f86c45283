# %% [markdown]
# # HardNet8 in hloc
# Copy this file to `hloc/extractors/hardnet8.py`. It is then a model of `hloc.extract_features`:
#
# ```
# conf = {
#     "output": "feats-hardnet8-n4096",
#     "model": {"name": "hardnet8", "max_keypoints": 4096},
#     "preprocessing": {"grayscale": True, "resize_max": 1600},
# }
# extract_features.main(conf, image_dir, export_dir, as_half=False)
# ```
#
# `as_half=False` matters: in half precision a coordinate above 1024 is off by up to half a pixel. Match with
# `NN-mutual` or `NN-ratio`.

# %%
from hloc.utils.base_model import BaseModel

from kornia_hardnet8 import HardNet8
from kornia_hardnet8 import HardNet8Feature as Feature


class HardNet8Extractor(BaseModel):
    """Keypoints (1, N, 2) with pixel centres at integers, scores (1, N), descriptors (1, D, N), as hloc wants them."""

    default_conf = {  # noqa: RUF012
        "max_keypoints": 4096,
        "detector": "dog",
        "weights": True,  # the bundled ones, or the path of a file
        "output_dim": 128,
        "precision": "auto",
    }
    required_inputs = ["image"]  # noqa: RUF012
    detection_noise = 1.0

    def _init(self, conf):
        network = HardNet8(conf["weights"], output_dim=conf["output_dim"])
        self.feature = Feature(conf["max_keypoints"], conf["detector"], network, precision=conf["precision"])

    def _forward(self, data):
        lafs, scores, descriptors = self.feature(data["image"])
        return {"keypoints": lafs[..., 2], "scores": scores, "descriptors": descriptors.transpose(1, 2)}
