"""Training descriptors: ``python -m train``."""
