"""From a folder of photographs to a COLMAP database and model."""
