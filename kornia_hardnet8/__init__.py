"""HardNet8 patch descriptors for kornia: a drop-in for ``kornia.feature.HardNet8`` with weights of its own."""

from kornia_hardnet8.errors import HardNet8Error
from kornia_hardnet8.feature import HardNet8Feature
from kornia_hardnet8.hardnet8 import HardNet8
from kornia_hardnet8.inference import prepare_for_inference

__version__ = "0.1.0"
__all__ = ["HardNet8", "HardNet8Error", "HardNet8Feature", "__version__", "prepare_for_inference"]
