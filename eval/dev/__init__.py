"""The development judgement: one run over poses, homographies and fixed cameras, for several descriptors."""
