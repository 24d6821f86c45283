"""The development judgement: one run over poses, homographies and fixed cameras, for several descriptors."""

from eval.dev.evaluate import DevSettings, evaluate

__all__ = ["DevSettings", "evaluate"]
