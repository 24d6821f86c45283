"""HardNet8 patch descriptors for kornia: a drop-in for ``kornia.feature.HardNet8`` with weights of its own."""

from kornia_hardnet8.errors import HardNet8Error
from kornia_hardnet8.feature import HardNet8Feature
from kornia_hardnet8.hardnet8 import HardNet8
from kornia_hardnet8.inference import prepare_for_inference
from kornia_hardnet8.pair import PairMatches, draw_matches, example_pair, match_pair, read_image

__version__ = "1.0.0"
__all__ = [
    "HardNet8",
    "HardNet8Error",
    "HardNet8Feature",
    "PairMatches",
    "__version__",
    "draw_matches",
    "example_pair",
    "match_pair",
    "prepare_for_inference",
    "read_image",
]
